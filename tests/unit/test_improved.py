"""improved-diffusion's weights: its names and shapes and what its network computes, written down from its own code."""

import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import ddpm_core
from ddpm_core import storage
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.interop.improved import read_improved
from ddpm_core.interop.improved_flags import PUBLISHED, Flags, read_flags
from ddpm_core.interop.improved_names import entries_of, shape_there, split_qkv
from ddpm_core.interop.model_folder import write_model
from ddpm_core.model.blocks import Attention
from ddpm_core.model.form import UNetForm
from ddpm_core.model.unet import UNetConfig

LAYERS = """
time_embed.0 128 32
time_embed.2 128 128
label_emb 3 128
input_blocks.0.0 32 3 3 3
input_blocks.1.0.in_layers.0 32
input_blocks.1.0.in_layers.2 32 32 3 3
input_blocks.1.0.emb_layers.1 64 128
input_blocks.1.0.out_layers.0 32
input_blocks.1.0.out_layers.3 32 32 3 3
input_blocks.2.0.op 32 32 3 3
input_blocks.3.0.in_layers.0 32
input_blocks.3.0.in_layers.2 64 32 3 3
input_blocks.3.0.emb_layers.1 128 128
input_blocks.3.0.out_layers.0 64
input_blocks.3.0.out_layers.3 64 64 3 3
input_blocks.3.0.skip_connection 64 32 1 1
input_blocks.3.1.norm 64
input_blocks.3.1.qkv 192 64 1
input_blocks.3.1.proj_out 64 64 1
middle_block.0.in_layers.0 64
middle_block.0.in_layers.2 64 64 3 3
middle_block.0.emb_layers.1 128 128
middle_block.0.out_layers.0 64
middle_block.0.out_layers.3 64 64 3 3
middle_block.1.norm 64
middle_block.1.qkv 192 64 1
middle_block.1.proj_out 64 64 1
middle_block.2.in_layers.0 64
middle_block.2.in_layers.2 64 64 3 3
middle_block.2.emb_layers.1 128 128
middle_block.2.out_layers.0 64
middle_block.2.out_layers.3 64 64 3 3
output_blocks.0.0.in_layers.0 128
output_blocks.0.0.in_layers.2 64 128 3 3
output_blocks.0.0.emb_layers.1 128 128
output_blocks.0.0.out_layers.0 64
output_blocks.0.0.out_layers.3 64 64 3 3
output_blocks.0.0.skip_connection 64 128 1 1
output_blocks.0.1.norm 64
output_blocks.0.1.qkv 192 64 1
output_blocks.0.1.proj_out 64 64 1
output_blocks.1.0.in_layers.0 96
output_blocks.1.0.in_layers.2 64 96 3 3
output_blocks.1.0.emb_layers.1 128 128
output_blocks.1.0.out_layers.0 64
output_blocks.1.0.out_layers.3 64 64 3 3
output_blocks.1.0.skip_connection 64 96 1 1
output_blocks.1.1.norm 64
output_blocks.1.1.qkv 192 64 1
output_blocks.1.1.proj_out 64 64 1
output_blocks.1.2.conv 64 64 3 3
output_blocks.2.0.in_layers.0 96
output_blocks.2.0.in_layers.2 32 96 3 3
output_blocks.2.0.emb_layers.1 64 128
output_blocks.2.0.out_layers.0 32
output_blocks.2.0.out_layers.3 32 32 3 3
output_blocks.2.0.skip_connection 32 96 1 1
output_blocks.3.0.in_layers.0 64
output_blocks.3.0.in_layers.2 32 64 3 3
output_blocks.3.0.emb_layers.1 64 128
output_blocks.3.0.out_layers.0 32
output_blocks.3.0.out_layers.3 32 32 3 3
output_blocks.3.0.skip_connection 32 64 1 1
out.0 32
out.2 6 32 3 3
"""
"""The state dict, in its order, of UNetModel(in_channels=3, model_channels=32, out_channels=6, num_res_blocks=1,
attention_resolutions=(2,), channel_mult=(1, 2), num_classes=3, num_heads=4, use_scale_shift_norm=True): a layer's name and the
shape of its weight. Each but label_emb has a bias, too."""
SEEN = {
    0: 0.370818,
    77: -0.714145,
    200: 0.692355,
    383: -0.626191,
    384: 0.271049,
    500: -0.556963,
    700: 0.547127,
    767: -0.668808,
}
"""Of its output, for the weights and the input below, at t = 1 and 3999 of 4000, scaled, of classes 2 and 0: some values."""
FLAGS = "--image_size 8 --diffusion_steps 4000 --noise_schedule cosine --rescale_timesteps True"


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for line in LAYERS.split("\n")[1:-1]:
        name, *numbers = line.split()
        found[f"{name}.weight"] = tuple(map(int, numbers))
        if name != "label_emb":
            found[f"{name}.bias"] = found[f"{name}.weight"][:1]
    return found


def number(shape: tuple[int, ...], place: int) -> torch.Tensor:
    fan = math.prod(shape[1:]) if len(shape) > 1 else 4
    angles = 0.7 * torch.arange(math.prod(shape), dtype=torch.float64) * (1 + 0.01 * place) + place
    return (torch.sin(angles) * math.sqrt(2 / fan)).float().view(shape)


def weights() -> dict[str, torch.Tensor]:
    return {name: number(shape, place) for place, (name, shape) in enumerate(shapes().items())}


def saved(folder: Path, tensors: dict[str, torch.Tensor] | None = None, name: str = "ema_0.9999_200000.pt") -> str:
    folder.mkdir(exist_ok=True)
    torch.save(weights() if tensors is None else tensors, folder / name)
    return str(folder / name)


def test_every_weight_has_their_name_and_shape(tmp_path: Path) -> None:
    network = read_improved(saved(tmp_path), read_flags(FLAGS)).config.build_network()
    ours = {name: tuple(p.shape) for name, p in network.named_parameters()}
    entries = list(entries_of(network))
    assert {entry.theirs: shape_there(entry, ours) for entry in entries} == shapes()
    assert sorted(name for entry in entries for name in entry.ours) == sorted(ours)


@torch.no_grad()
def test_it_computes_what_their_network_does(tmp_path: Path) -> None:
    read = read_improved(saved(tmp_path), read_flags(FLAGS))
    network = ddpm_core.Model.from_tensors(read.config, read.tensors).network
    x = torch.sin(torch.arange(2 * 3 * 8 * 8, dtype=torch.float64)).float().view(2, 3, 8, 8)
    found = network(x, torch.tensor([1, 3999]), torch.tensor([2, 0])).flatten()
    for place, value in SEEN.items():
        assert float(found[place]) == pytest.approx(value, abs=2e-5), place


def test_shapes_and_flags_say_what_the_model_is(tmp_path: Path) -> None:
    form = UNetForm(
        num_heads=4,
        scale_shift=True,
        symmetric_padding=True,
        norm_groups=32,
        norm_epsilon=1e-5,
        time_cos_first=True,
        time_freq_shift=0,
        time_scale=0.25,
        null_label=False,
    )
    read = read_improved(saved(tmp_path), read_flags(FLAGS)).config
    assert read == ddpm_core.ModelConfig(
        image_size=8,
        channels=3,
        unet=UNetConfig(
            base_channels=32,
            channel_multipliers=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(4,),
            dropout=0.0,
            num_classes=3,
            form=form,
        ),
        schedule=ScheduleConfig(name="cosine", num_timesteps=4000),
        reverse=ReverseConfig(variance="learned_range"),
    )
    said = "--image_size 8 --num_heads 2 --diffusion_steps 200 --predict_xstart True --rescale_timesteps False --dropout 0.3"
    other = read_improved(saved(tmp_path), read_flags(said)).config
    assert other.schedule == ScheduleConfig(num_timesteps=200, rescale=True)
    assert other.reverse == ReverseConfig(prediction="x_0", variance="learned_range")
    assert (other.unet.form.num_heads, other.unet.form.time_scale, other.unet.dropout) == (2, 1.0, 0.3)


@pytest.mark.parametrize(("sigma_small", "variance"), [("True", "fixed_small"), ("False", "fixed_large")])
def test_a_variance_that_is_not_learned(sigma_small: str, variance: str, tmp_path: Path) -> None:
    plain = {**weights(), "out.2.weight": torch.zeros(3, 32, 3, 3), "out.2.bias": torch.zeros(3)}
    flags = read_flags(f"--image_size 8 --diffusion_steps 1000 --sigma_small {sigma_small} --learn_sigma False")
    read = read_improved(saved(tmp_path, plain), flags).config
    assert read.reverse == ReverseConfig(variance=variance)  # type: ignore[arg-type]
    assert read.schedule == ScheduleConfig()
    assert read.unet.form.time_scale == 1.0


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_query_key_and_value_lie_head_by_head(num_heads: int) -> None:
    """Their attention, from its one layer of 3 c channels to before its last, by its own arrangement of them."""
    torch.manual_seed(0)
    c, size = 8, 8 // num_heads
    kernel, bias, x = torch.randn(3 * c, c), torch.randn(3 * c), torch.randn(1, c, 3, 5)
    layer = Attention(c, UNetForm(num_heads=num_heads))
    three = zip(split_qkv(kernel, num_heads), split_qkv(bias, num_heads), strict=True)
    with torch.no_grad():
        for mine, (weight, offset) in zip((layer.query, layer.key, layer.value), three, strict=True):
            mine.weight.copy_(weight[:, :, None, None])
            mine.bias.copy_(offset)
        layer.out.weight.copy_(torch.eye(c)[:, :, None, None])
        layer.out.bias.zero_()
        qkv = kernel @ layer.norm(x)[0].flatten(1) + bias[:, None]
        heads = []
        for first in range(0, 3 * c, 3 * size):
            query, key, value = (qkv[first + k * size : first + (k + 1) * size] for k in range(3))
            heads.append(value @ ((query.T @ key) / math.sqrt(size)).softmax(dim=1).T)
        torch.testing.assert_close(layer(x), x + torch.cat(heads).view_as(x))


def test_it_is_written_as_a_model_that_loads_and_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_improved(
        saved(tmp_path / "theirs"), read_flags("--image_size 8 --diffusion_steps 8 --noise_schedule cosine")
    )
    folder, written = str(tmp_path / "model"), []
    write = storage.write_bytes

    def noted(uri: str, data: bytes) -> None:
        written.append(uri.rpartition("/")[2])
        write(uri, data)

    monkeypatch.setattr(storage, "write_bytes", noted)
    write_model(folder, read.config, read.tensors)
    write_model(folder, read.config, read.tensors)
    assert written == ["config.json", "weights.safetensors"]
    model = ddpm_core.load(folder)
    assert model.config == read.config
    expected = ddpm_core.Model.from_tensors(read.config, read.tensors)
    images = model.sample(range(2), labels=[2])
    assert np.array_equal(images, expected.sample(range(2), labels=[2]))
    with pytest.raises(ValueError, match=r"guidance is 1 and the network knows no image without a label"):
        model.sample([0], guidance=1.0)
    with pytest.raises(
        ValueError, match=r"weights\.safetensors is there and is another model's; expected a folder that is"
    ):
        write_model(folder, read.config, {**read.tensors, "conv_in.bias": torch.ones(32)})
    with pytest.raises(ValueError, match=r"conv_in\.bias has shape None, the network expects \(32,\)"):
        write_model(folder, read.config, {name: t for name, t in read.tensors.items() if name != "conv_in.bias"})
    assert written == ["config.json", "weights.safetensors"]


def test_half_precision_is_widened_and_safetensors_are_read(tmp_path: Path) -> None:
    halves = {name: tensor.half() for name, tensor in weights().items()}
    safetensors.torch.save_file(halves, tmp_path / "a.safetensors")
    read = read_improved(str(tmp_path / "a.safetensors"), read_flags(FLAGS)).tensors["conv_in.bias"]
    assert torch.equal(read, weights()["input_blocks.0.0.bias"].half().float())


# Flags.


def test_the_published_models_are_told_by_their_files_names(tmp_path: Path) -> None:
    said = {name: read_flags(words) for name, words in PUBLISHED.items()}
    cosine = Flags(image_size=32, dropout=0.3, diffusion_steps=4000, noise_schedule="cosine")
    assert said["cifar10_uncond_50M_500K.pt"] == said["cifar10_uncond_vlb_50M_500K.pt"] == cosine
    conditional = said["imagenet64_cond_270M_250K.pt"]
    assert (conditional.class_cond, conditional.rescale_timesteps, conditional.num_heads) == (True, False, 4)
    lsun = said["lsun_uncond_100M_2400K_bs64.pt"]
    assert (lsun.num_heads, lsun.diffusion_steps, lsun.noise_schedule, lsun.image_size) == (1, 1000, "linear", 256)
    with pytest.raises(
        ValueError, match=r"^ema_0\.9999_200000\.pt is no published model of improved-diffusion; expected the"
    ):
        read_improved(saved(tmp_path))
    # Its name says 32 pixels, its weights that they are of another network.
    with pytest.raises(ValueError, match=r"multiples of channels"):
        read_improved(
            saved(tmp_path, {**weights(), **unlike((1, 2, 3, 4))}, "cifar10_uncond_50M_500K.pt"),
        )


def unlike(multipliers: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Residual blocks of such widths on the way down."""
    found: dict[str, torch.Tensor] = {}
    for level, multiplier in enumerate(multipliers):
        found[f"input_blocks.{2 * level + 1}.0.in_layers.2.weight"] = torch.zeros(32 * multiplier, 32, 3, 3)
        found[f"input_blocks.{2 * level + 2}.0.op.weight"] = torch.zeros(1)
    return found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--image_size", "the flags are '--image_size'; expected pairs"),
        ("image_size 8", "the flags are 'image_size 8'; expected pairs"),
        ("--num_eyes 2", "--num_eyes is 2; expected one of --image_size, --num_channels"),
        ("--image_size small", "--image_size is small; expected a value of type int"),
        ("--learn_sigma 3", "--learn_sigma is 3; expected True or False"),
        ("--noise_schedule sqrt", "noise_schedule is sqrt; expected linear or cosine"),
        ("--num_heads_upsample 2", "num_heads is 4 and num_heads_upsample 2; expected 1 or more, and as many"),
        ("--diffusion_steps 0", "diffusion_steps is 0; expected 1 or more"),
    ],
)
def test_flags_that_are_none_are_refused(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_flags(words)
    assert "\n" not in str(error.value)


def test_flags_of_training_are_passed_over() -> None:
    assert read_flags("--lr 1e-4 --use_kl True --rescale_learned_sigmas False --num_heads_upsample -1") == Flags()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "tell no image size; expected --image_size"),
        ("--image_size 8 --num_channels 64", "num_channels is 64, by the weights of .* it is 32; expected the same"),
        ("--image_size 8 --num_res_blocks 2", "num_res_blocks is 2, by the weights of .* it is 1; expected the same"),
        ("--image_size 8 --learn_sigma False", "learn_sigma is False, by the weights of .* it is True"),
        ("--image_size 8 --class_cond False", "class_cond is False, by the weights of .* it is True"),
        (
            "--image_size 8 --use_scale_shift_norm False",
            "use_scale_shift_norm is False, by the weights of .* it is True",
        ),
        ("--image_size 8 --attention_resolutions 8,4", "attention_resolutions is 8,4, by the weights of .* it is 4"),
        ("--image_size 8 --num_heads 5", "unet.form.num-heads is 5; expected a divisor of the attention's 64 channels"),
        ("--image_size 8 --diffusion_steps 4", "schedule.rescale makes betas up to 5 of 4 steps"),
    ],
)
def test_flags_that_the_weights_belie_are_refused(words: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_improved(saved(tmp_path), read_flags(words))
    assert "\n" not in str(error.value)


def test_sizes_without_a_level_mean_nothing(tmp_path: Path) -> None:
    read_improved(saved(tmp_path), read_flags("--image_size 8 --attention_resolutions 16,4"))


# Files.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out.0.bias": None}, "there is no out.0.bias; expected one of shape (32,)"),
        (
            {"time_embed.0.weight": None},
            "there is no time_embed.0.weight; expected the weights of a network of improved-",
        ),
        ({"out.0.bias": torch.zeros(31)}, "out.0.bias has shape (31,); expected (32,)"),
        (
            {"out.0.bias": torch.zeros(32, dtype=torch.int64)},
            "out.0.bias is of type torch.int64; expected floating point",
        ),
        ({"out.3.bias": torch.zeros(32)}, "out.3.bias of shape (32,) is no weight of the network"),
        (
            {"input_blocks.0.0.weight": torch.zeros(32, 6, 3, 3)},
            "the network takes 6 channels and gives 6; expected 3, and 3 or 6: an upsampling model has no counterpart",
        ),
        (
            {"input_blocks.1.0.in_layers.2.weight": torch.zeros(40, 1, 1, 1)},
            "are no multiples of 32; expected those of",
        ),
        ({"step": 3}, "holds something other than tensors by name; expected the network's state dict alone"),
    ],
)
def test_other_weights_are_refused_by_name(
    changes: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    tensors = {name: tensor for name, tensor in {**weights(), **changes}.items() if tensor is not None}
    uri = saved(tmp_path, tensors)
    with pytest.raises(ValueError, match=r".") as error:
        read_improved(uri, read_flags(FLAGS))
    assert str(error.value).startswith(uri)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


class Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this code ran",)


def test_no_code_of_a_file_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": Runs()}, tmp_path / "evil.pt")
    (tmp_path / "no.pt").write_bytes(b"no weights")
    (tmp_path / "no.npz").write_bytes(b"no weights")
    np.savez(tmp_path / "evil.npz", a=np.array([Runs()], dtype=object), allow_pickle=True)
    for name in ("evil.pt", "no.pt", "no.npz", "evil.npz"):
        with pytest.raises(
            ValueError, match=r"cannot be read as weights, without running code of it; expected"
        ) as error:
            read_improved(str(tmp_path / name), read_flags(FLAGS))
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500
    with pytest.raises(ValueError, match=r"^no .*gone\.pt; expected a file of weights"):
        read_improved(str(tmp_path / "gone.pt"), read_flags(FLAGS))
    assert "this code ran" not in capsys.readouterr().out
