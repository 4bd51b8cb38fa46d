"""Public fakes, for people who write policies, hosts and runtimes: real classes that do as they are told, no mocks."""

from colocate.testing.runtime import CPU_STEP_S, JobScript, ScriptedRuntime, UShapedHost

__all__ = ["CPU_STEP_S", "JobScript", "ScriptedRuntime", "UShapedHost"]
