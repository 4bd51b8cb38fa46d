"""The one family of errors that a user can cause and cure."""


class UserError(Exception):
    """Bad input or a missing permission: printed as one line, exit code 2, and nothing has been touched.

    Args:
        what: what is wrong, naming the culprit (file, option, address, job).
        cure: what to do about it, as an order; empty where `what` says it all.
    """

    def __init__(self, what: str, cure: str = "") -> None:
        super().__init__(what if not cure else f"{what}; {cure}")
        self.what = what
        self.cure = cure
