"""Where other published U-Nets differ from the paper's, which is one of a family: what no weight's shape tells, mostly."""

from dataclasses import dataclass

from ddpm_core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class UNetForm:
    """How the network computes; the default is the paper's. What else there is: diffusers' UNet2DModel, and the networks of
    Nichol and Dhariwal 2021.

    Raises:
        InputError: if a field is out of its range.
    """

    num_heads: int = 1
    """Heads of each attention, side by side over its channels, which are a multiple of them."""
    head_channels: int | None = None
    """Channels of a head, of which an attention has as many as its channels make; None: as num_heads says."""
    scale_shift: bool = False
    """The time embedding scales and shifts what the second norm of a residual block gives, h (1 + scale) + shift (Dhariwal
    and Nichol 2021, Eq. 3), in place of being added before it."""
    symmetric_padding: bool = False
    """The convolution that halves the size is padded by one pixel on all sides, not at the bottom and right only."""
    norm_groups: int | None = None
    """Groups of every norm, a divisor of base_channels; None: 32, or fewer that are of 4 channels or more."""
    norm_epsilon: float = 1e-6
    """What the norms add to the variance."""
    time_cos_first: bool = False
    """The time embedding is all cosines, then all sines."""
    time_freq_shift: int = 1
    """Of n frequencies, the i-th is 10,000^(-i / (n - shift)): with 1 the last is 1/10,000, with 0 it would be the next."""
    time_scale: float = 1.0
    """What t is multiplied by before its sinusoids are taken: 1000 / T in the networks of Nichol and Dhariwal 2021."""
    null_label: bool = True
    """A network with classes has one more row for images without a label."""

    def __post_init__(self) -> None:
        for name, least in (("num_heads", 1), ("head_channels", 1), ("norm_groups", 1), ("time_freq_shift", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{_flag(name)} is {value}; expected {least} or more")
        for name in ("norm_epsilon", "time_scale"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{_flag(name)} is {getattr(self, name)}; expected a number more than 0")
        if self.head_channels is not None and self.num_heads != 1:
            raise InputError(
                f"{_flag('head_channels')} is {self.head_channels} and {_flag('num_heads')} is {self.num_heads}; "
                "expected one of them alone"
            )

    def check_base(self, base_channels: int) -> None:
        """Refuse what so many channels at full size cannot have.

        Raises:
            InputError: with both numbers.
        """
        if self.norm_groups is not None and base_channels % self.norm_groups:
            raise InputError(
                f"{_flag('norm_groups')} is {self.norm_groups}; expected a divisor of unet.base-channels, {base_channels}"
            )
        if self.time_freq_shift >= base_channels // 2:
            raise InputError(
                f"{_flag('time_freq_shift')} is {self.time_freq_shift}; expected less than the {base_channels // 2} "
                "frequencies, half of unet.base-channels"
            )

    def heads_of(self, channels: int) -> int:
        """How many heads an attention over so many channels has.

        Raises:
            InputError: if they do not divide them.
        """
        name = "num_heads" if self.head_channels is None else "head_channels"
        divisor: int = getattr(self, name)
        if channels % divisor:
            raise InputError(f"{_flag(name)} is {divisor}; expected a divisor of the attention's {channels} channels")
        return self.num_heads if self.head_channels is None else channels // self.head_channels


def _flag(name: str) -> str:
    return f"unet.form.{name.replace('_', '-')}"


PAPER = UNetForm()
"""The paper's network."""
