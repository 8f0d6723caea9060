"""Why a start is refused."""


class StartError(Exception):
    """The service cannot start; the message is one sentence for the person who typed the command."""
