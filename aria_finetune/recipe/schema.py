"""The recipe: its sections, keys, types and defaults. Knows neither YAML nor files nor how problems are shown.

Defaults of `lora` and `train` follow the LoRA recipe of Aria's authors. Keys under `train` carry the names of TRL's
`SFTConfig` and mean the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    field_validator,
    model_validator,
)

from aria_finetune.errors import UserError
from aria_finetune.recipe.layers import Layer, check_layer, resolve_layers

ComputeType = Literal["bfloat16", "float32"]
ExpertsType = Literal["nf4", "bf16", "fp32"]
Interval = Literal["no", "steps", "epoch"]
Target = Literal["attention", "router", "shared_experts", "experts", "projector", "vision"]
Tracker = Literal["tensorboard", "wandb", "none"]

_SWITCHES = {"", "true", "false", "yes", "no", "on", "off", "y", "n", "none", "null"}
BALANCE_LOSS, Z_LOSS = 1e-4, 1e-5
"""Coefficients of the authors' LoRA recipe."""
FEATURE_FOLDER = "image-features"
"""Beside the run's folder, so that all runs in a folder share it, and a run that is replaced or never begins leaves it."""


def as_sources(value: object) -> tuple[Any, ...]:
    """A list of sources from what a person may write: a path, a mapping, or a list of either."""
    if value is None:
        return ()
    entries = value if isinstance(value, list | tuple) else [value]
    return tuple({"path": entry} if isinstance(entry, str) else entry for entry in entries)


def _as_tuple(value: object) -> object:
    if value is None:
        return ()
    if isinstance(value, list):
        return tuple(value)
    return (value,) if isinstance(value, str) else value


def _number_as_tuple(value: object) -> object:
    return (value,) if isinstance(value, int) else _as_tuple(value)


def _without_duplicates(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError("names the same thing twice")
    return values


def _supported_init(value: object) -> object:
    if value == "pissa":
        raise ValueError(
            "pissa moves the largest part of each weight into the adapter and packs the rest, so that the adapter would fit "
            "no NF4 base but its own, and PEFT refuses packed weights; loftq keeps the base, default starts from zero"
        )
    return value


def _switch_or_folder(value: object) -> object:
    """Words that mean a switch elsewhere would otherwise name folders."""
    if isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() not in _SWITCHES):
        return value
    raise ValueError("must be true, false, or a folder")


def _steps_or_unlimited(value: int) -> int:
    if value != -1 and value < 1:
        raise ValueError("must be at least 1, or -1 for no limit")
    return value


Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Paths = Annotated[tuple[Text, ...], BeforeValidator(_as_tuple)]


class Section(BaseModel):
    """What all sections share: nothing unknown, nothing converted, nothing changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class ModelSection(Section):
    """Which Aria and in what precision.

    `path` is a hub id, a folder, or `tiny`. `experts` is how the routed experts are held; `dtype` is the type of
    everything else, None for the one that goes with `experts`. `lm_head` may be held in NF4 as well, and
    `embedding` in host memory. `rope_theta` is the base of the rotary embedding, None that of config.json.
    """

    path: Text
    revision: Text | None = None
    experts: ExpertsType = "nf4"
    dtype: ComputeType | None = None
    lm_head: Literal["dense", "nf4"] = "dense"
    embedding: Literal["device", "host"] = "device"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    rope_theta: Annotated[float, Field(gt=1)] | None = None

    @property
    def compute_dtype(self) -> ComputeType:
        """`dtype`, its default resolved: float32 beside fp32 experts, else bfloat16."""
        return self.dtype or ("float32" if self.experts == "fp32" else "bfloat16")


class SourceSection(Section):
    """One source of rows.

    `weight` is how many times its rows are seen per epoch: 3 takes each three times, 0.25 a quarter of them
    (rounded, at least one), and another quarter in the next epoch. Media of the rows are looked for below
    `media_root`, or beside the source where it is empty. The other keys say how a source that is not converted is to
    be read, as the options of `convert` do: `companions` are the files of `--with`.
    """

    path: Text
    format: Text = "auto"
    media_root: Paths = ()
    weight: Positive = 1.0
    companions: Paths = ()
    columns: dict[str, Text] = Field(default_factory=dict)
    answers: Literal["both", "letter", "text"] = "both"
    take: Literal["chosen"] | None = None
    encoding: Text | None = None
    converter: Text | None = None


Sources = Annotated[tuple[SourceSection, ...], BeforeValidator(as_sources)]


class DataSection(Section):
    """Which rows, and how they become tokens.

    `image_size` is the longer side in pixels, `max_tokens` the length of a row with its image tokens, `packing` whether rows of
    an optimizer step go through the model one behind the other, up to as many tokens, `num_frames`
    the frames of a video whose row names no number, `max_pixels` the largest image that is decoded. `on_bad_media` says
    what becomes of a row whose media can't be used any more when it is its turn, `media_timeout` how many seconds the
    decoding of one image or one video may take. `cache_image_features` computes what the vision tower makes of every
    picture before the first step and keeps it on the disk, True in a folder beside the run's, a text in the folder that
    it names; `cache_limit_gib` is the most that may lie in that folder.
    """

    train: Annotated[Sources, Field(min_length=1)]
    eval: Sources = ()
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    image_size: Literal[490, 980, "auto"] = "auto"
    split_images: bool = False
    max_tokens: Annotated[int, Field(ge=16)] = 4096
    packing: bool = True
    too_long: Literal["reject", "fail", "fewer_frames"] = "reject"
    loss_on: Literal["assistant", "last_turn"] = "assistant"
    num_frames: Annotated[int, Field(ge=1, le=1024)] = 8
    timestamps: bool = True
    max_rejects: Annotated[int, Field(ge=0)] = 0
    max_pixels: Count = 64_000_000
    on_bad_media: Literal["fail", "skip"] = "fail"
    media_timeout: Annotated[float, Field(gt=0, le=86_400)] = 30.0
    cache_image_features: Annotated[bool | str, BeforeValidator(_switch_or_folder)] = False
    cache_limit_gib: Positive = 100.0

    @property
    def has_eval(self) -> bool:
        """Whether there is anything to evaluate on."""
        return bool(self.eval) or self.eval_fraction is not None


class LoraSection(Section):
    """Where the adapter sits and how large it is; `rslora` scales by alpha / sqrt(rank) instead of alpha / rank.

    `layers` are the decoder layers that have adapters, None all of them; `Recipe.adapted_layers` says which those are.
    `dora` trains the length of every row of a weight apart from its direction. `init` of `loftq` starts adapters of NF4 linears
    where they make up for the packing. `loraplus_lr_ratio` is the learning rate of B matrices over that of A matrices, None for the same.
    """

    targets: Annotated[
        tuple[Target, ...],
        BeforeValidator(_as_tuple),
        AfterValidator(_without_duplicates),
        Field(min_length=1),
    ] = ("attention", "router")
    rank: Count = 8
    alpha: Positive = 32.0
    dropout: Fraction = 0.05
    rslora: bool = False
    layers: (
        Annotated[
            tuple[Annotated[Layer, BeforeValidator(check_layer)], ...],
            BeforeValidator(_number_as_tuple),
            AfterValidator(_without_duplicates),
            Field(min_length=1),
        ]
        | None
    ) = None
    dora: bool = False
    init: Annotated[Literal["default", "loftq"], BeforeValidator(_supported_init)] = "default"
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] | None = None


class MoeSection(Section):
    """How the routed experts are computed, where they are held, and what keeps their routers healthy.

    `experts_at_a_time` of None makes all experts of a layer dense together; nothing but `grouped` looks at it.
    `balance_loss` and `z_loss` are the coefficients of each layer's losses, None the authors' where the router is trained and 0
    where it isn't; `balance_group` is how many neighbouring experts the balance loss counts as one, 1 every expert by itself.
    `health` keeps an account of where tokens are routed.
    """

    implementation: Literal["auto", "eager", "grouped_mm", "grouped", "lean"] = "auto"
    experts_at_a_time: Count | None = None
    experts_on: Literal["device", "host"] = "device"
    balance_loss: NotNegative | None = None
    balance_group: Count = 8
    z_loss: NotNegative | None = None
    health: bool = True


class TrainSection(Section):
    """The optimisation, the schedule, and what is saved and logged when.

    `max_steps` of -1 leaves the length to `num_train_epochs`; `max_grad_norm` of 0 clips nothing; a gradient norm of
    more than `spike_factor` times the median of the last 32 makes no update, None sets no such limit. `activation_offloading`
    takes what gradient checkpointing keeps to host memory. `neftune_noise_alpha` sets how large the noise on text embeddings is in
    training, None adds none. `evaluate_generation` is how many held-out rows are answered at each evaluation, with answers of up to
    `max_new_tokens` tokens; 0 answers none. `eval_strategy`, `eval_steps` and `bf16` may be None; `Recipe` says what that comes to.
    """

    learning_rate: Positive = 5e-5
    num_train_epochs: Positive = 1.0
    max_steps: Annotated[int, AfterValidator(_steps_or_unlimited)] = -1
    per_device_train_batch_size: Count = 1
    per_device_eval_batch_size: Count = 1
    gradient_accumulation_steps: Count = 8
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts"] = (
        "cosine"
    )
    warmup_ratio: Fraction = 0.01
    weight_decay: NotNegative = 0.1
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.95
    adam_epsilon: Positive = 1e-8
    max_grad_norm: NotNegative = 1.0
    spike_factor: Annotated[float, Field(gt=1)] | None = None
    neftune_noise_alpha: Positive | None = None
    optim: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit"] = "adamw_torch"
    logging_steps: Count = 1
    save_strategy: Interval = "steps"
    save_steps: Count = 500
    save_total_limit: Count | None = 2
    eval_strategy: Interval | None = None
    eval_steps: Count | None = None
    evaluate_generation: Annotated[int, Field(ge=0)] = 0
    max_new_tokens: Count = 64
    load_best_model_at_end: bool = False
    early_stopping_patience: Count | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    bf16: bool | None = None
    gradient_checkpointing: bool = True
    activation_offloading: bool = False
    dataloader_num_workers: Annotated[int, Field(ge=0)] = 2
    report_to: Annotated[tuple[Tracker, ...], BeforeValidator(_as_tuple), AfterValidator(_without_duplicates)] = ()

    @field_validator("report_to")
    @classmethod
    def _none_stands_alone(cls, trackers: tuple[Tracker, ...]) -> tuple[Tracker, ...]:
        if "none" in trackers and len(trackers) > 1:
            raise ValueError("names none beside a tracker; keep one of them")
        return tuple(tracker for tracker in trackers if tracker != "none")


class OutputSection(Section):
    """Where the run is written: `dir`, or `runs/<recipe>` below the current folder when None."""

    dir: Text | None = None
    overwrite: bool = False


class Recipe(Section):
    """A whole recipe. Make one with `aria_finetune.recipe.load_recipe`, which also checks keys against each other.

    The properties hold what the None among the keys come to.
    """

    model: ModelSection
    data: DataSection
    lora: LoraSection
    moe: MoeSection
    train: TrainSection
    output: OutputSection
    _file: Path = PrivateAttr(default=Path("recipe.yaml"))

    @model_validator(mode="before")
    @classmethod
    def _sections_may_be_left_out(cls, written: object) -> object:
        if not isinstance(written, Mapping):
            return written
        return {**written, **{name: {} for name in cls.model_fields if written.get(name) is None}}

    @classmethod
    def from_data(cls, data: Mapping[str, Any], file: Path) -> Recipe:
        """Validate plain values; keys are not checked against each other.

        Raises:
            pydantic.ValidationError: with every problem of types, ranges and names.
        """
        recipe = cls.model_validate(data)
        recipe._file = file  # noqa: SLF001 - a private attribute keeps `file` out of the keys of a recipe
        return recipe

    @property
    def file(self) -> Path:
        """The recipe's file; relative data paths are looked for beside it."""
        return self._file

    @property
    def output_dir(self) -> Path:
        """The run's folder."""
        return Path(self.output.dir).expanduser() if self.output.dir else Path("runs") / self._file.stem

    @property
    def feature_folder(self) -> Path | None:
        """Where image features are kept, if they are."""
        cache = self.data.cache_image_features
        if isinstance(cache, bool):
            return self.output_dir.parent / FEATURE_FOLDER if cache else None
        return Path(cache).expanduser()

    @property
    def bf16(self) -> bool:
        """Whether training runs under bfloat16 autocast."""
        return self.model.compute_dtype == "bfloat16" if self.train.bf16 is None else self.train.bf16

    @property
    def eval_strategy(self) -> Interval:
        """When to evaluate during training: by steps as soon as there is something to evaluate on."""
        return self.train.eval_strategy or ("steps" if self.data.has_eval else "no")

    @property
    def eval_steps(self) -> int:
        """Optimizer steps between evaluations: those between saves where nothing else is said."""
        return self.train.eval_steps or self.train.save_steps

    def experts_implementation(self, device: str) -> Literal["eager", "grouped_mm", "grouped", "lean"]:
        """How routed experts are computed on a device: `auto` is `lean` on a CPU and `grouped` on a GPU."""
        if self.moe.implementation != "auto":
            return self.moe.implementation
        return "lean" if device == "cpu" else "grouped"

    def adapted_layers(self, layers: int) -> tuple[int, ...] | None:
        """The numbers of the layers that have adapters in a decoder of so many, None where all have.

        Raises:
            UserError: `lora.layers` names a layer that is not there.
        """
        if self.lora.layers is None:
            return None
        try:
            return resolve_layers(self.lora.layers, layers)
        except LookupError as error:
            raise UserError(
                f"there is no layer {error.args[0]} in a decoder of {layers} layers",
                where=f"{self.file}: lora.layers",
                fix=f"name layers from 0 to {layers - 1}, or from the end by -1 to -{layers}",
            ) from error

    @property
    def balance_loss(self) -> float:
        """The coefficient of the routers' balance loss: the authors' where the router is trained and nothing else is said."""
        return self._routing_loss(self.moe.balance_loss, BALANCE_LOSS)

    @property
    def z_loss(self) -> float:
        """The same of the routers' z-loss."""
        return self._routing_loss(self.moe.z_loss, Z_LOSS)

    @property
    def watches_routing(self) -> bool:
        """Whether routers are looked at in training: for their losses, or for the account of them."""
        return self.moe.health or self.balance_loss > 0 or self.z_loss > 0

    def _routing_loss(self, written: float | None, default: float) -> float:
        return (default if "router" in self.lora.targets else 0.0) if written is None else written

    def dump(self) -> dict[str, Any]:
        """All keys as plain JSON types, every None that has a meaning resolved. Holds nothing of the environment."""
        data = self.model_dump(mode="json")
        data["model"]["dtype"] = self.model.compute_dtype
        data["train"].update(bf16=self.bf16, eval_strategy=self.eval_strategy, eval_steps=self.eval_steps)
        data["moe"].update(balance_loss=self.balance_loss, z_loss=self.z_loss)
        data["output"]["dir"] = str(self.output_dir)
        return data
