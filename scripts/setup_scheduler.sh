#!/usr/bin/env bash
# Sets up colocate on this machine, and where asked runs its demo or its tests; `--help` tells the rest.
#
# For the tests of this script: COLOCATE_ROOT is looked into instead of / for etc/os-release, run/systemd/system,
# var/run/docker.sock, var/run/docker.pid, sbin and usr/sbin, and var/log gets the engine's log.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: scripts/setup_scheduler.sh [--check] [--no-docker] [-h|--help] [demo [ARG...] | test [ARG...]]

Sets up what is missing for colocate: Docker Engine, memcached, a C compiler and Python's venv from the distribution's
packages, the package itself in .venv, the batch kernels and their image. What is there is left as it is.

  demo [ARG...]  set up, then `colocate demo ARG...`
  test [ARG...]  set up, then ruff, mypy, import-linter and pytest: the tests of no machine on all cores at once, then
                 those of this one, one after another; with ARG... only `pytest ARG...`. That needs three things
                 more: sudo, where root runs this; Debian's chromium and chromium-driver (not on Ubuntu, where Chromium
                 is a snap); and promtool, out of the package prometheus into .venv, so that no server is started here
  --check        change nothing; tell what is there and what would be done; exit code 1 if something is missing
  --no-docker    leave Docker alone; batch jobs run as plain processes

For Debian 12, Ubuntu 22.04 and 24.04; as root, or as a user with sudo.
Exit code 0: done, 1: a step failed, 2: not possible here.
HELP
}

say() { printf 'setup: %s\n' "$*" >&2; }
die() { # CODE TEXT
  printf 'setup_scheduler.sh: %s\n' "$2" >&2
  exit "$1"
}

system=${COLOCATE_ROOT:-}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
stamp=$venv/.colocate-set-up # the hash of the pyproject.toml that was installed, and whether with the tools for tests
engine_log=$system/var/log/colocate-dockerd.log
engine_wait_s=120
PATH=$PATH:$system/usr/sbin:$system/sbin # where dockerd lies; a plain user's PATH lacks them on Debian
uid=$(id -u)
log=
through_group=false

check=false docker=true action=setup
while (($#)); do
  case $1 in
    --check) check=true ;;
    --no-docker) docker=false ;;
    -h | --help) usage && exit 0 ;;
    demo | test) action=$1 && shift && break ;;
    *) die 2 "unknown argument '$1'; see scripts/setup_scheduler.sh --help" ;;
  esac
  shift
done
arguments=("$@")
extra=run
if [[ $action = test ]]; then extra=dev; fi

read_system() {
  local id number name oldest
  # shellcheck source=/dev/null
  read -r id number name <<<"$(
    . "$system/etc/os-release" 2>/dev/null || true
    printf '%s %s %s' "${ID:-unknown}" "${VERSION_ID:--}" "${PRETTY_NAME:-${ID:-a system without os-release}}"
  )"
  system_name=$name
  python_packages=(python3-venv)
  browser_packages=()
  case $id in
    debian) oldest=12 browser_packages=(chromium chromium-driver) ;;
    ubuntu) oldest=2204 ;;
    *) oldest= ;;
  esac
  local plain=${number//[!0-9]/} # Debian's testing and unstable have none
  if [[ -z $oldest || ${plain:-9999} -lt $oldest ]]; then
    die 2 "$name is not supported; Debian 12, Ubuntu 22.04 and Ubuntu 24.04 are, and newer ones of the two"
  fi
  case $id-$number in
    debian-12 | ubuntu-24.04) ;;
    ubuntu-22.*) python_packages=(python3.11 python3.11-venv) ;; # its python3 is 3.10
    *) say "note: $name is newer than Debian 12, Ubuntu 22.04 and 24.04, which this was made for; going on" ;;
  esac
}

there() { command -v "$1" >/dev/null; }

as_root() { if [[ $uid = 0 ]]; then "$@"; else sudo "$@"; fi; }

need_root() { # WHAT FOR
  if [[ $uid = 0 ]]; then return; fi
  if there sudo && { sudo -n true 2>/dev/null || { [[ -t 2 ]] && sudo -v; }; }; then return; fi
  die 2 "to $1 this must be run as root or as a user with sudo (or with --no-docker, if it is only for Docker)"
}

step() { # WHAT COMMAND...: a line for the eye, the command's output for the log
  local what=$1
  shift
  if [[ -z $log ]]; then
    log=$(mktemp "${TMPDIR:-/tmp}/colocate-setup.XXXXXX.log")
    say "what the steps print goes to $log"
  fi
  say "$what"
  if ! "$@" >>"$log" 2>&1 </dev/null; then
    tail -n 20 "$log" >&2
    die 1 "failed: $what; all of it is in $log"
  fi
}

venv_works() { # a venv that was moved here from elsewhere does not: its scripts name the old place
  grep -qsF "$venv/bin/python" "$venv/bin/pip" &&
    "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() { # sets `python` to one that can make a venv for us
  for python in python3.13 python3.12 python3.11 python3; do
    if "$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then return 0; fi
  done
  return 1
}

venv_ready() {
  local hash kind
  venv_works && [[ -r $stamp ]] && read -r hash kind <"$stamp" &&
    [[ $hash = "$(project_hash)" && ($kind = dev || $kind = "$extra") ]]
}

project_hash() { sha256sum <"$root/pyproject.toml" | cut -d ' ' -f 1; }

compiler_works() {
  local compiler
  compiler=$(command -v cc || command -v gcc) && "$compiler" -x c -fsyntax-only - <<<'#include <stdio.h>' 2>/dev/null
}

# Asks the engine that the Docker SDK would ask. Exit code 0: it answers, 1: it does not, 2: it does not let us.
ping='
import os, socket, sys, urllib.parse
url = urllib.parse.urlsplit(os.environ.get("DOCKER_HOST") or "unix://" + sys.argv[1])
try:
    if url.scheme == "unix":
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(20)
        link.connect(url.path)
    else:
        link = socket.create_connection((url.hostname, url.port or 2375), 20)
    if os.environ.get("DOCKER_TLS_VERIFY"):
        sys.exit(0)
    link.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
    sys.exit(b" 200 " not in link.recv(64))
except PermissionError:
    sys.exit(2)
except (OSError, ValueError):
    sys.exit(1)
'

quoted() { # WORD...: for sh, which knows nothing of the quotes that bash's own %q and @Q make of a newline
  local word
  for word; do printf "'%s' " "${word//\'/\'\\\'\'}"; done
}

with_engine() { # COMMAND...: run by somebody who may speak to the engine
  if $through_group; then sg docker -c "exec $(quoted "$@")"; else "$@"; fi
}

in_group() { [[ " $(id -nG "$1") " == *' docker '* ]]; } # by the user data base; the shell may not know it yet

look_for_engine() { # sets `engine`: off, answers, refuses, elsewhere, silent or missing
  local code=0
  if ! $docker; then
    engine=off
    return
  fi
  with_engine python3 -c "$ping" "$system/var/run/docker.sock" || code=$?
  if ((code == 2)) && ! $through_group && in_group "$(id -un)"; then
    through_group=true
    look_for_engine
    return
  fi
  case $code in
    0) engine=answers ;;
    2) engine=refuses ;;
    *)
      engine=missing
      if there dockerd; then engine=silent; fi
      if [[ -n ${DOCKER_HOST:-} ]]; then engine=elsewhere; fi
      ;;
  esac
}

browser_there() { there chromium && there chromedriver; }

promtool_there() { there promtool || [[ -x $venv/bin/promtool ]]; }

look_for_packages() { # sets `packages` to those that must be installed
  packages=()
  if ! venv_works && ! find_python; then packages+=("${python_packages[@]}"); fi
  if ! compiler_works; then packages+=(gcc libc6-dev); fi
  if ! there memcached; then packages+=(memcached); fi
  if [[ $engine = missing ]]; then packages+=(docker.io); fi
  if [[ $engine = missing && ! -e /etc/ssl/certs/ca-certificates.crt ]]; then packages+=(ca-certificates); fi # to pull
  # Where the kernel enforces AppArmor, the engine starts no container without the program that loads its profile.
  if [[ $engine = missing || $engine = silent ]] && ! there apparmor_parser &&
    [[ $(cat /sys/module/apparmor/parameters/enabled 2>/dev/null) = Y ]]; then
    packages+=(apparmor)
  fi
  if [[ $action = test && $uid = 0 ]] && ! there sudo; then packages+=(sudo); fi # for tests as users of fewer rights
  if [[ $action = test ]] && ! browser_there; then
    packages+=("${browser_packages[@]}")
    if ((${#browser_packages[@]} == 0)); then
      say "note: no chromium and chromedriver here, and Ubuntu has them as a snap only; the dashboard's tests want both"
    fi
  fi
}

apt() {
  as_root env LC_ALL=C DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l apt-get -q -y -o DPkg::Lock::Timeout=300 "$@"
}

update_lists() { # DPkg::Lock::Timeout does not cover the lock of the lists, which a new server's first boot holds
  local until=$((SECONDS + 300)) output
  until output=$(apt update 2>&1) || [[ $output != *'Could not get lock'* ]] || ((SECONDS >= until)); do
    sleep 5
  done
  printf '%s\n' "$output" # whether the lists are good enough, the installation shows
}

install_packages() {
  if ((${#packages[@]} == 0)); then return; fi
  need_root "install ${packages[*]}"
  step "apt-get update" update_lists
  step "apt-get install ${packages[*]}" apt install --no-install-recommends --no-remove "${packages[@]}"
  if [[ " ${packages[*]} " == *' memcached '* ]]; then
    say "memcached: the distribution's own service (127.0.0.1:11211) is left as it is; the demo starts a private one"
  fi
}

join_group() { # USER
  if in_group "$1" || ! getent group docker >/dev/null; then return; fi
  need_root "add $1 to the group docker"
  as_root usermod -aG docker "$1"
  say "added $1 to the group docker, which is as good as root on this machine; shells that are open do not know it yet:"
  say "log in again, or type: newgrp docker"
}

alive() { [[ -r /proc/$1/status ]] && ! grep -qs '^State:[[:space:]]*Z' "/proc/$1/status"; }

launch_engine() { # by hand; prints its pid
  # Pid files of an earlier life of this machine would keep dockerd from starting; a dockerd that is starting, is left.
  # shellcheck disable=SC2016 # the variables are the inner shell's
  as_root sh -c '
    for file in "$1/docker.pid" "$1/docker/containerd/containerd.pid"; do
      case $(cat "/proc/$(cat "$file" 2>/dev/null)/comm" 2>/dev/null) in
        dockerd) cat "$file" && exit ;;
        containerd) ;;
        *) rm -f "$file" ;;
      esac
    done
    setsid nohup dockerd >>"$2" 2>&1 </dev/null &
    echo $!' sh "$system/var/run" "$engine_log"
}

wait_for_engine() { # PID or nothing
  until look_for_engine && [[ $engine != silent ]]; do
    if ((SECONDS >= engine_until)) || { [[ -n $1 ]] && ! alive "$1"; }; then return; fi
    sleep 0.5
  done
}

start_engine() { # and leave it running; sets `engine`
  local pid='' why='see: systemctl status docker' engine_until=$((SECONDS + engine_wait_s))
  need_root "start the Docker engine"
  if [[ -d $system/run/systemd/system ]]; then
    say "starting the Docker engine by systemctl"
    if as_root systemctl start docker >/dev/null 2>&1 </dev/null; then wait_for_engine ''; fi
  else
    say "starting the Docker engine by hand, as there is no systemd; it goes on running; its log is $engine_log"
    for _ in first second; do # dockerd itself gives up on a slow containerd, which is faster the second time
      pid=$(launch_engine)
      wait_for_engine "$pid"
      if [[ $engine != silent ]] || alive "$pid"; then break; fi
    done
  fi
  if [[ $engine != answers ]]; then
    if [[ -n $pid ]]; then why=$(as_root grep -aE '^(failed|panic)' "$engine_log" | tail -n 1 | cut -c -300 || true); fi
    say "docker: no engine can run here (${why:-it does not answer}); going on without, jobs run as plain processes"
  fi
}

set_up_engine() {
  local user=${SUDO_USER:-root}
  if [[ $uid != 0 ]]; then user=$(id -un); fi
  case $engine in
    off) return ;;
    elsewhere)
      say "docker: DOCKER_HOST=$DOCKER_HOST does not answer; going on without (unset it to use one here)"
      return
      ;;
    answers) ;;
    *) if [[ $uid != 0 ]]; then join_group "$user"; fi ;;
  esac
  look_for_engine
  case $engine in
    silent | missing) start_engine ;;
    refuses) say "docker: the engine does not let $user speak to it; going on without, jobs run as plain processes" ;;
  esac
  if [[ $uid = 0 && $user != root && -z ${DOCKER_HOST:-} ]]; then join_group "$user"; fi
  if $through_group && [[ $engine = answers ]]; then
    say "this shell is not in the group docker yet; going on through: sg docker"
  fi
}

install_project() {
  local target='.[all]'
  if [[ $extra = dev ]]; then target='.[dev]'; fi
  if venv_ready; then return; fi
  if ! venv_works; then step "making .venv" "$python" -m venv --clear "$venv"; fi
  rm -f "$stamp"
  # shellcheck disable=SC2016 # $1 to $3 are the inner shell's
  step "pip install -e $target, into .venv" \
    sh -c 'cd "$1" && "$2" -m pip install -e "$3"' sh "$root" "$venv/bin/python" "$target"
  printf '%s %s\n' "$(project_hash)" "$extra" >"$stamp"
}

fetch_promtool() { # and nothing else of its package, which would start a server
  local place code=0
  place=$(mktemp -d "${TMPDIR:-/tmp}/colocate-promtool.XXXXXX")
  (
    cd "$place" &&
      { apt-get -q download prometheus || { update_lists && apt-get -q download prometheus; }; } &&
      dpkg -x ./prometheus_*.deb . && cp usr/bin/promtool "$venv/bin/"
  ) || code=1
  rm -rf "$place"
  return "$code"
}

report() { # STATE PART TEXT
  printf '%-8s %-10s %s\n' "$@"
  if [[ $1 = missing ]]; then missing=1; fi
}

report_whether() { # PART TEXT-IF-SO WHAT-WOULD-BE-DONE COMMAND...: by whether the command succeeds
  local part=$1 so=$2 would=$3
  shift 3
  if "$@"; then report ok "$part" "$so"; else report missing "$part" "would $would"; fi
}

may_use_docker() { [[ $engine = answers || $uid = 0 || -n ${DOCKER_HOST:-} ]] || in_group "$(id -un)"; }

image_is_current() {
  [[ $engine = answers ]] && venv_ready && with_engine "$venv/bin/python" -B -c '
import sys, docker, colocate_workloads.image
sys.exit(not colocate_workloads.image.image_is_current(docker.from_env()))' 2>/dev/null
}

report_all() {
  missing=0
  report ok system "$system_name"
  if venv_works; then
    report ok python "$venv/bin/python"
  else
    report_whether python "one that can make a venv" "install ${python_packages[*]}" find_python
  fi
  report_whether compiler "it compiles, with the C library's headers" "install gcc and libc6-dev" compiler_works
  report_whether memcached "$(command -v memcached)" "install memcached" there memcached
  report_whether package "installed in .venv" "install the package in .venv" venv_ready
  if [[ $action = test ]]; then
    report_whether browser "$(command -v chromium)" "install ${browser_packages[*]:-nothing, on Ubuntu}" browser_there
    report_whether promtool "it is there" "take it out of the package prometheus into .venv" promtool_there
  fi
  case $engine in
    off) report skipped docker "as asked by --no-docker" && return "$missing" ;;
    answers) report ok docker "an engine answers at ${DOCKER_HOST:-$system/var/run/docker.sock}" ;;
    refuses) report ok docker "there is an engine; it does not let $(id -un) speak to it" ;;
    elsewhere) report missing docker "DOCKER_HOST=$DOCKER_HOST does not answer; would go on without" ;;
    silent) report missing docker "would start $(command -v dockerd)" ;;
    missing) report missing docker "would install docker.io and start it" ;;
  esac
  report_whether group "nothing to do for $(id -un)" \
    "add $(id -un) to the group docker, which is as good as root" may_use_docker
  report_whether image "the demo jobs' image is current" "make the demo jobs' image" image_is_current
  return "$missing"
}

# Those that want nothing but CPU on all cores at once, then, alone, those that want the machine.
run_all_tests() {
  local code=0
  say "pytest: the tests of no machine"
  with_engine "$venv/bin/pytest" -n logical --maxprocesses 8 --dist loadfile -m 'not live' || code=$?
  say "pytest: the tests of this machine"
  with_engine "$venv/bin/pytest" -m live || code=$?
  return "$code"
}

run_tests() {
  unset PYTHONDONTWRITEBYTECODE PYTHONUNBUFFERED # with the first, each of hundreds of starts compiles all modules anew
  local code=0 failed='' tool
  cd "$root"
  for tool in 'ruff check' mypy 'mypy benchmarks' lint-imports; do
    say "$tool"
    # shellcheck disable=SC2086 # words of a command
    "$venv/bin/"$tool || failed+=" $tool,"
  done
  if [[ -n $failed ]]; then say "failed so far:${failed%,}; the exit code will tell"; fi
  if ((${#arguments[@]})); then
    say "pytest"
    with_engine "$venv/bin/pytest" "${arguments[@]}" || code=$?
  else
    run_all_tests || code=$?
  fi
  if ((code == 0)) && [[ -n $failed ]]; then code=1; fi
  exit "$code"
}

read_system
look_for_engine
if $check; then
  code=0
  report_all || code=$?
  exit "$code"
fi
look_for_packages
install_packages
set_up_engine
if ! venv_works && ! find_python; then die 1 "no Python 3.11 or newer that can make a venv, even now"; fi
install_project
if [[ $action = test ]] && ! promtool_there; then step "fetching promtool into .venv" fetch_promtool; fi
step "building the batch kernels" "$venv/bin/python" -m colocate_workloads
if [[ $engine = answers ]]; then
  step "making the demo jobs' image" with_engine "$venv/bin/python" -m colocate_workloads --image
fi
case $action in
  demo)
    if $through_group; then exec sg docker -c "exec $(quoted "$venv/bin/colocate" demo "${arguments[@]}")"; fi
    exec "$venv/bin/colocate" demo "${arguments[@]}"
    ;;
  test) run_tests ;;
  setup) say "done; next: scripts/setup_scheduler.sh demo" ;;
esac
