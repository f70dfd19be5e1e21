"""The ways in which a run ends that are no bug, and what others' errors say."""

import errno


class UserError(ValueError):
    """A mistake in what the user gave: one sentence with the field, its value and the remedy.

    The command line prints the sentence alone and exits with `status`; a stack trace means a bug of
    ours.
    """

    status = 2


class ReaderKilled(UserError):
    """A process that reads data was killed: what was trained up to then can be saved."""


class Preempted(BaseException):
    """SIGTERM or SIGINT arrived; what was trained is saved, and the same command resumes.

    The sentence says where.

    The command line prints it and exits with `status` (EX_TEMPFAIL). Like KeyboardInterrupt it is
    no `Exception`, so that nothing takes it for an error of its own.
    """

    status = 75


def first_line(error: BaseException) -> str:
    """The message of an error in one line of at most 200 characters; its type where it has none."""
    said = str(error).strip().splitlines()
    return (said[0].rstrip(".;:")[:200] if said else "") or type(error).__name__


def reason(error: BaseException) -> str:
    """The reason of a failure, for a sentence that names the place: of the system's errors without
    their number and file, of others the first line.
    """
    return getattr(error, "strerror", None) or first_line(error)


def is_full(error: BaseException) -> bool:
    """Whether an error, or what it came of, says that a disk or a quota is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    said = any(
        sentence in str(error) for sentence in ("No space left on device", "Disk quota exceeded")
    )
    return said or (error.__cause__ is not None and is_full(error.__cause__))
