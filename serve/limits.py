"""What one visitor may ask for, and what all together may."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """
    Attributes:
        megabytes: of one study, as it is sent and as it is unpacked.
        files: of one study, members of zip files counted.
        slices: of one study, of 512 x 512 pixels; fewer, if they are larger.
        seconds: to send a study; and again, once its turn has come, to read and answer it.
        waiting: studies that are being sent or wait for their turn.
        unattended_seconds: after which a study goes that waits for its turn, but whose visitor does not.
        kept_megabytes: of all answers together; beyond it the one that was longest without a visitor goes.
        idle_seconds: after which an answer goes.
        names: that can be scored for one study.
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
        """What the process that opens a study may take: its files, its pixels as they are read, and the libraries."""
        return 512 + 4 * self.megabytes


class Refused(ValueError):
    """A study that is not answered. Its message is one line, for the visitor."""
