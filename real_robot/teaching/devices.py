"""The teaching devices by name, and how each is set up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from flowpolicy.core.errors import ConfigError, nearest
from flowpolicy.core.files import read_secret
from flowpolicy.real_robot.bridge.ring_records import SessionRings
from flowpolicy.real_robot.teaching.gamepad import Gamepad
from flowpolicy.real_robot.teaching.keyboard import Keyboard, LedByHand
from flowpolicy.real_robot.teaching.leader import LeaderArm, LeaderCalibration, LeaderServer, require_token
from flowpolicy.real_robot.teaching.spacemouse import SpaceMouse
from flowpolicy.real_robot.teaching.teach_loop import Frame, TeachConfig
from flowpolicy.real_robot.teaching.teaching_device import TeachingDevice

Device = Literal["scripted", "spacemouse", "gamepad", "keyboard", "guide", "leader"]


@dataclasses.dataclass(frozen=True)
class DeviceConfig:
    """What a person teaches with, and how its motions become the arm's."""

    teach: Device = "scripted"
    """What drives the arm: a scripted operator (built-in tasks only), or a device in a person's hand; docs/teach.md."""
    speed: float = TeachConfig.speed
    """Of the tool at full deflection, m/s."""
    turning: float = TeachConfig.turning
    """The same for turns, rad/s."""
    frame: Frame = TeachConfig.frame
    """Whose axes a twist is in: the base's, seen from where the person stands, or the tool's."""
    facing: float = TeachConfig.facing
    """Where the person stands: 0 behind the base and looking along x, 180 opposite to it, degrees."""
    listen: str = "127.0.0.1:8766"
    """Where a leader is waited for, ADDRESS:PORT."""
    leader_token_file: Path | None = None
    """File with what a leader must show; needed unless it is on this host."""
    calibration: Path | None = None
    """File that `flowpolicy robot leader` wrote: from the leader's joints to the arm's."""

    def __post_init__(self) -> None:
        self.motion()
        address(self.listen)
        if self.teach == "leader" and self.calibration is None:
            raise ConfigError("--teach leader without --calibration", fix="make it: flowpolicy robot leader FILE")

    def motion(self) -> TeachConfig:
        """The part that is about motions."""
        return TeachConfig(self.speed, self.turning, self.frame, self.facing)

    def require_files(self, arm: str) -> None:
        """Raise :class:`FlowPolicyError` where a file that is named cannot be used, before anything moves."""
        if self.teach == "leader":
            if self.calibration is not None:
                LeaderCalibration.load(self.calibration, arm)
            require_token(address(self.listen)[0], self.token())

    def options(self) -> dict[str, str | float | None]:
        """For another process: numbers, words, and absolute paths as words."""
        values = dataclasses.asdict(self)
        return {key: str(value.absolute()) if isinstance(value, Path) else value for key, value in values.items()}

    @staticmethod
    def of(options: dict[str, str | float | None]) -> DeviceConfig:
        """Inverse of :meth:`options`."""
        paths = {key: Path(str(options[key])) for key in ("leader_token_file", "calibration") if options[key]}
        return DeviceConfig(**{**options, **paths})  # type: ignore[arg-type]

    def token(self) -> str:
        """What a leader must show; nothing unless a file says so."""
        return read_secret(self.leader_token_file) if self.leader_token_file else ""


def address(listen: str) -> tuple[str, int]:
    """Host and port of ADDRESS:PORT.

    Raises:
        ConfigError: it is none.

    """
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"--listen {listen}", expected="ADDRESS:PORT, such as 127.0.0.1:8766")
    return host, int(port)


def listen_to(config: DeviceConfig) -> LeaderServer:
    """A server that waits for the leader of a setup."""
    host, port = address(config.listen)
    return LeaderServer(host, port, config.token())


def _leader(config: DeviceConfig, session: SessionRings) -> TeachingDevice:
    assert config.calibration is not None
    calibration = LeaderCalibration.load(config.calibration, session.arm.name.lower())
    return LeaderArm(lambda: listen_to(config), calibration, session.arm.hand.width)


DEVICES: dict[str, Callable[[DeviceConfig, SessionRings], TeachingDevice]] = {
    "spacemouse": lambda config, session: SpaceMouse(),
    "gamepad": lambda config, session: Gamepad(),
    "keyboard": lambda config, session: Keyboard(session),
    "guide": lambda config, session: LedByHand(session),
    "leader": _leader,
}


def make_device(config: DeviceConfig, session: SessionRings) -> TeachingDevice:
    """The device, not opened yet."""
    if config.teach not in DEVICES:
        raise ConfigError(f"no person teaches with '{config.teach}'", expected=nearest(config.teach, DEVICES))
    return DEVICES[config.teach](config, session)
