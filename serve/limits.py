"""What one visitor may request, and what all visitors together may."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """
    Attributes:
        megabytes: Size of one study, as it is sent and as it is unpacked.
        files: Files of one study, including the members of zip files.
        slices: Slices of one study, of 512 x 512 pixels; fewer if they are larger.
        seconds: Time to send a study; and again, once its turn has come, to read and answer it.
        waiting: Studies that are being sent, wait for their turn or are being answered.
        unattended_seconds: Time after which a waiting study is deleted whose visitor does not listen.
        kept_megabytes: Size of all answers together; beyond it, the answer that was not used for longest is deleted.
        idle_seconds: Time after which an answer that is not used is deleted.
        names: Names that can be scored for one study.
    """

    megabytes: int = 512
    files: int = 2000
    slices: int = 1000
    seconds: int = 120
    waiting: int = 32
    unattended_seconds: int = 60
    kept_megabytes: int = 1024
    idle_seconds: int = 900
    names: int = 50

    @property
    def reader_megabytes(self) -> int:
        """Memory of the process that reads a study: its files, its pixels while they are read, and the libraries."""
        return 512 + 4 * self.megabytes


class Refused(ValueError):
    """A study or a name that is not accepted. The message is one line for the visitor.

    Attributes:
        status: The HTTP status that goes with it.
    """

    def __init__(self, reason: str, status: int = 422):
        super().__init__(reason)
        self.status = status


TOO_LARGE, TIMED_OUT, TOO_MANY_STUDIES = 413, 408, 503
