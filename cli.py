"""The commands. Thin: each reads its arguments, imports what it needs and calls one function.

Nothing heavy is imported here, so that `--help` answers at once. Errors that a person can mend end with a
message and exit code 2 (3 for too many rejected rows); `--debug` shows where they came from.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from aria_finetune import __version__
from aria_finetune.errors import UserError
from aria_finetune.interruption import Interrupted, Interruption
from aria_finetune.redaction import redact_streams

INTERRUPTION = "aria_finetune.interruption"
"""Where a command finds what tells it of signals."""


class CommandGroup(TyperGroup):
    """Keeps secrets out of all that is printed; turns the project's errors and signals into messages and exit codes."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; see the module's docstring for what becomes of errors."""
        redact_streams()
        try:
            with Interruption() as ctx.meta[INTERRUPTION]:
                return super().invoke(ctx)
        except UserError as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            typer.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)
        except Interrupted as stopped:
            typer.echo(f"stopped by {stopped}", err=True)
            sys.exit(stopped.exit_code)


app = typer.Typer(cls=CommandGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def show_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and what the libraries say.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, help="Print it and stop.", is_eager=True)
    ] = False,
) -> None:
    """Fine-tune Aria, an open multimodal mixture-of-experts model, on one GPU."""
    ctx.obj = debug


RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipes/tiny.yaml.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to change.")]
Adapter = Annotated[Path, typer.Argument(metavar="ADAPTER", help="An adapter folder, or the folder of its run.")]
Output = Annotated[Path, typer.Argument(metavar="OUTPUT", help="A folder to make.")]


@app.command()
def train(
    ctx: typer.Context,
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest sealed checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Validate all, build one batch, stop.")] = False,
) -> None:
    """Train an adapter."""
    from aria_finetune.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    with prepared(ctx, loaded.model.path):
        from aria_finetune import training

    if dry_run:
        training.dry_run(loaded, console(), resume=resume)
    else:
        training.train(loaded, console(), resume=resume, interruption=ctx.meta[INTERRUPTION])


@app.command()
def inspect(
    ctx: typer.Context,
    recipe: RecipeArgument,
    overrides: Overrides = None,
    rows: Annotated[int | None, typer.Option(min=0, help="Rows to show; 3, or 20 on a page.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one HTML page instead.")] = None,
    split: Annotated[Literal["train", "eval"], typer.Option(help="Rows of training or of evaluation.")] = "train",
) -> None:
    """Show what the model will see: tokens, what is in the loss, images, frames, rejected rows."""
    from aria_finetune.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    with prepared(ctx, loaded.model.path):
        from aria_finetune.inspection import InspectionOptions
        from aria_finetune.inspection import inspect as run

    run(loaded, console(), InspectionOptions(rows, html, split))


@app.command()
def plan(
    ctx: typer.Context,
    recipe: RecipeArgument,
    overrides: Overrides = None,
    gpu_memory: Annotated[float | None, typer.Option(min=0.1, help="Plan for a GPU with so many GiB.")] = None,
    card: Annotated[str | None, typer.Option(help="Plan for a card by its name, such as 4090 or h100.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say whether a run will fit and how long it takes, before any weight is read."""
    from aria_finetune.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    with prepared(ctx, loaded.model.path):
        from aria_finetune.planning import choose_machine, make_plan, refuse_full_disk, refuse_rejected, refuse_unfit

    made = make_plan(loaded, choose_machine(loaded, gpu_memory=gpu_memory, card=card))
    if as_json:
        import json

        typer.echo(json.dumps(made.as_dict()))
    else:
        from aria_finetune.planning.page import show_plan

        show_plan(made, console())
    refuse_rejected(made)
    refuse_unfit(made.outlook)
    refuse_full_disk(made)


@app.command()
def evaluate(
    ctx: typer.Context,
    recipe: RecipeArgument,
    overrides: Overrides = None,
    adapter: Annotated[Path | None, typer.Option(help="Score this adapter beside the base.")] = None,
    merged: Annotated[Path | None, typer.Option(help="Score this merged checkpoint beside the base.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for evaluation.json, predictions.jsonl and a page.")] = Path(
        "evaluation"
    ),
    metric: Annotated[str, typer.Option(help="Score all rows by this; auto takes that of each row.")] = "auto",
    run_code: Annotated[
        bool, typer.Option("--run-code", help="Run programs that the model writes, to test them.")
    ] = False,
    blank_images: Annotated[bool, typer.Option(help="Also answer with every picture greyed out.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows answered at a time.")] = 8,
) -> None:
    """Answer held-out rows with base and adapter, and score both."""
    from aria_finetune.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    with prepared(ctx, loaded.model.path):
        from aria_finetune.evaluation import EvaluationOptions
        from aria_finetune.evaluation import evaluate as run

    options = EvaluationOptions(adapter, blank_images, max_new_tokens, batch_size, merged, metric, run_code)
    run(loaded, output, options, console())


ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a hub id, an NF4 folder, or tiny.")]
AdapterOption = Annotated[Path | None, typer.Option(help="An adapter folder, or the folder of its run.")]
RevisionOption = Annotated[str | None, typer.Option(help="Revision of a hub id.")]
ExpertsOption = Annotated[Literal["nf4", "bf16", "fp32"], typer.Option(help="How the routed experts are held.")]
HomeOption = Annotated[Literal["device", "host"], typer.Option(help="Where they are held.")]
DeviceOption = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the model computes.")]
SizeOption = Annotated[Literal["490", "980", "auto"] | None, typer.Option(help="Longer side of pictures in pixels.")]
FramesOption = Annotated[int | None, typer.Option(min=1, max=1024, help="Frames of a video.")]
SystemOption = Annotated[str | None, typer.Option(help="What is said before all else.")]
LengthOption = Annotated[int, typer.Option(min=1, help="Longest answer.")]
TemperatureOption = Annotated[float, typer.Option(min=0, help="Draw answers; 0 takes the likeliest token.")]
TopPOption = Annotated[float, typer.Option(min=1e-6, max=1, help="Draw among tokens that make up this share.")]
TopKOption = Annotated[int, typer.Option(min=0, help="Draw among so many tokens; 0 for all.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of draws.")]


@app.command()
def generate(
    ctx: typer.Context,
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(metavar="[PROMPT]", help="What is asked.")] = "",
    adapter: AdapterOption = None,
    image: Annotated[list[str] | None, typer.Option(help="Show it before the prompt; repeat for more.")] = None,
    video: Annotated[list[str] | None, typer.Option(help="Show frames of it; repeat for more.")] = None,
    document: Annotated[list[str] | None, typer.Option("--document", "--pdf", help="Show its pages.")] = None,
    system: SystemOption = None,
    source: Annotated[Path | None, typer.Option("--from", help="Answer a file of prompts instead.")] = None,
    output: Annotated[Path, typer.Option(help="Where its answers go, a JSON object a line.")] = Path("answers.jsonl"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with that file.")] = False,
    format_name: Annotated[str, typer.Option("--format", help="Format of the prompts; see `formats`.")] = "auto",
    media_root: Annotated[list[Path] | None, typer.Option(help="Where their media lie; may be repeated.")] = None,
    max_rejects: Annotated[int, typer.Option(min=0, help="Prompts that may be unusable.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts answered at a time.")] = 8,
    max_new_tokens: LengthOption = 512,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    seed: SeedOption = 0,
    experts: ExpertsOption = "nf4",
    experts_on: HomeOption = "device",
    device: DeviceOption = "auto",
    revision: RevisionOption = None,
    image_size: SizeOption = None,
    num_frames: FramesOption = None,
) -> None:
    """Answer a prompt, or a file of them."""
    with prepared(ctx, model):
        from aria_finetune.speaking import commands
        from aria_finetune.speaking.answering import Asking, FileJob
        from aria_finetune.speaking.attaching import message
        from aria_finetune.speaking.speaker import SpeakerOptions

    options = SpeakerOptions(model, revision, adapter, experts, experts_on, device, image_size, num_frames)
    drawn = commands.sampling_of(temperature, top_p, top_k, seed)
    asking = Asking(max_new_tokens, drawn, batch_size, max_rejects)
    said = message(prompt, image or (), video or (), document or ())
    if source is None:
        commands.generate_one(options, said, system, asking, console(stderr=True))
    elif said:
        raise UserError("there is a prompt beside --from", fix="leave one of them out")
    else:
        job = FileJob(source, output, resume, format_name, tuple(media_root or ()), system)
        commands.generate_file(options, job, asking, console())


@app.command()
def chat(
    ctx: typer.Context,
    model: ModelArgument,
    adapter: AdapterOption = None,
    system: SystemOption = None,
    max_new_tokens: LengthOption = 512,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    seed: SeedOption = 0,
    experts: ExpertsOption = "nf4",
    experts_on: HomeOption = "device",
    device: DeviceOption = "auto",
    revision: RevisionOption = None,
    image_size: SizeOption = None,
    num_frames: FramesOption = None,
) -> None:
    """Talk with a model: lines of standard input, and /image, /video, /pdf, /system, /reset, /save, /quit."""
    with prepared(ctx, model):
        from aria_finetune.speaking import commands
        from aria_finetune.speaking.answering import Asking
        from aria_finetune.speaking.speaker import SpeakerOptions

    options = SpeakerOptions(model, revision, adapter, experts, experts_on, device, image_size, num_frames)
    drawn = commands.sampling_of(temperature, top_p, top_k, seed)
    commands.chat(options, system, Asking(max_new_tokens, drawn), console(stderr=True))


@app.command()
def experts(
    ctx: typer.Context,
    recipe: RecipeArgument,
    overrides: Overrides = None,
    adapter: Annotated[Path | None, typer.Option(help="Map this adapter beside the base.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for experts.json, experts.parquet and experts.png.")] = Path(
        "experts"
    ),
    rows: Annotated[int, typer.Option(min=0, help="Training rows to look at; 0 for all.")] = 1000,
    threshold: Annotated[float, typer.Option(min=1, help="Times the share of text tokens: a visual expert.")] = 10.0,
) -> None:
    """Map which experts images, videos, documents and text go to."""
    from aria_finetune.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    with prepared(ctx, loaded.model.path):
        from aria_finetune.specialisation import MapOptions, map_experts

    map_experts(loaded, output, MapOptions(adapter, rows or None, threshold), console())


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A file or folder in a known format.")],
    output: Output,
    format_name: Annotated[str, typer.Option("--format", help="Name of the format; see `formats`.")] = "auto",
    media_root: Annotated[list[Path] | None, typer.Option(help="Where media lie; may be repeated.")] = None,
    max_rejects: Annotated[int, typer.Option(min=0, help="Records that may be rejected.")] = 0,
    verify: Annotated[Literal["none", "stat", "header", "decode"], typer.Option(help="How far to look.")] = "header",
    max_pixels: Annotated[int, typer.Option(min=1, help="Largest image.")] = 64_000_000,
    companion: Annotated[
        list[Path] | None, typer.Option("--with", help="A file of answers, captions or names.")
    ] = None,
    media: Annotated[
        Literal["copy", "hardlink", "reference"] | None, typer.Option(help="What becomes of media; copy if looked for.")
    ] = None,
    pack: Annotated[Literal["jsonl", "parquet"], typer.Option(help="Files, or Parquet with media in it.")] = "jsonl",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; as many as processors if not given.")] = None,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="This machine, or a Ray cluster.")] = "local",
    columns: Annotated[list[str] | None, typer.Option("--column", help="WHAT=COLUMN of a table; repeat.")] = None,
    answers: Annotated[Literal["both", "letter", "text"], typer.Option(help="Answers to multiple choice.")] = "both",
    take: Annotated[Literal["chosen"] | None, typer.Option(help="Make instruction data of preferences.")] = None,
    evaluation: Annotated[bool, typer.Option("--eval", help="Allow records without an answer.")] = False,
    encoding: Annotated[str | None, typer.Option(help="Of text, if it is not Unicode.")] = None,
    converter: Annotated[Path | None, typer.Option(help="A Python file with a format of your own.")] = None,
    to: Annotated[
        Literal["aria", "webdataset"] | None, typer.Option(help="Write a converted set in this form.")
    ] = None,
) -> None:
    """Turn data of any known format into the canonical data set, or such a set into the form of others."""
    from aria_finetune.conversion import ConversionOptions
    from aria_finetune.conversion import convert as run
    from aria_finetune.conversion.engines import default_workers
    from aria_finetune.conversion.engines import engine as open_engine
    from aria_finetune.conversion_progress import ConversionProgress

    options = ConversionOptions(
        format_name,
        tuple(media_root or ()),
        max_rejects,
        verify,
        max_pixels,
        evaluation,
        media,
        pack,
        tuple(companion or ()),
        encoding,
        converter,
        answers,
        take,
        _pairs(columns or []),
    )
    if to is not None:
        from aria_finetune.conversion.exporting import export as write

        report = write(source, output, to, max_rejects=max_rejects)
    else:
        with open_engine(engine, workers or default_workers()) as opened:
            report = run(source, output, options, opened, ConversionProgress(console()))
    typer.echo(
        f"{report.read} read, {report.written} written, {report.rejected} rejected; the data set is in {output}/"
    )
    for reason, count in sorted(report.reasons.items()):
        typer.echo(f"  rejected: {count} {reason}")


@app.command()
def lengthen(
    ctx: typer.Context,
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="A folder to make.")] = Path("long"),
) -> None:
    """Join the training rows of a recipe into rows of up to data.max_tokens tokens."""
    from aria_finetune.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    with prepared(ctx, loaded.model.path):
        from aria_finetune.lengthening import lengthen as run

    run(loaded, output, console())


@app.command()
def needles(
    ctx: typer.Context,
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="A folder to make.")] = Path("needles"),
    length: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Tokens of a row; may be repeated. 1024 and its doubles if not given."),
    ] = None,
    depth: Annotated[list[int] | None, typer.Option(min=0, max=100, help="Percent before it; may be repeated.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each length, depth and kind.")] = 4,
) -> None:
    """Hide facts and odd pictures among the training rows of a recipe; evaluate says which are found."""
    from aria_finetune.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    with prepared(ctx, loaded.model.path):
        from aria_finetune.needles import DEPTHS, NeedleOptions, hide_needles

    options = NeedleOptions(tuple(length or ()), tuple(depth or DEPTHS), rows=rows)
    hide_needles(loaded, output, options, console())


def _pairs(texts: list[str]) -> dict[str, str]:
    """`WHAT=COLUMN` options as what they say."""
    pairs = [text.partition("=") for text in texts]
    for text, (what, equals, column) in zip(texts, pairs, strict=True):
        if not (what and equals and column):
            raise typer.BadParameter(f"{text!r} is not WHAT=COLUMN", param_hint="--column")
    return {what: column for what, _, column in pairs}


@app.command()
def formats(name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this one.")] = None) -> None:
    """List the formats that can be read, or show one with an example."""
    from aria_finetune.format_help import describe

    typer.echo(describe(name))


@app.command()
def quantize(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or hub id of the original weights, or tiny.")],
    output: Output,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub id.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where weights are packed.")] = "auto",
) -> None:
    """Pack the weights to 4 bit once, so that later runs load them in seconds."""
    with prepared(ctx, model):
        from aria_finetune.layer_progress import LayerProgress
        from aria_finetune.material import device_named
        from aria_finetune.quantization import quantize as run

    with LayerProgress("quantising", console(), "files") as progress:
        run(model, output, revision=revision, device=device_named(device), watch=progress, say=progress.say)
    typer.echo(f"the NF4 checkpoint is in {output}/; name it as model.path")


@app.command()
def merge(
    ctx: typer.Context,
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="[ADAPTER] OUTPUT", help="An adapter folder or its run, and a folder to make."),
    ],
    adapter: Annotated[
        list[str] | None, typer.Option(metavar="DIR:WEIGHT", help="One of several to add up, such as runs/a:0.7.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Folder or hub id of the original weights.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub id.")] = None,
    any_base: Annotated[bool, typer.Option("--any-base", help="Merge into other weights than those it knows.")] = False,
    to: Annotated[Literal["original", "nf4"], typer.Option(help="Write the base's own dtype, or NF4.")] = "original",
    proof: Annotated[bool, typer.Option(help="Compare logits with base and adapter before it gets its name.")] = True,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the proof is computed.")] = "auto",
) -> None:
    """Fold an adapter, or several, into the original weights, and prove it."""
    *named, output = folders
    if len(named) > 1:
        raise typer.BadParameter("name one ADAPTER, and several with --adapter DIR:WEIGHT", param_hint="ADAPTER")
    with prepared(ctx, base):
        from aria_finetune.merging import merge_and_prove

    merge_and_prove(
        [*map(str, named), *(adapter or [])],
        output,
        console(),
        base=base,
        revision=revision,
        any_base=any_base,
        to_nf4=to == "nf4",
        device=device if proof else None,
    )


@app.command()
def export(
    ctx: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="ADAPTER", help="An adapter folder or its run; or a checkpoint in another layout.")
    ],
    output: Output,
    base: Annotated[str | None, typer.Option(help="Base model that the adapter should name.")] = None,
    layout: Annotated[
        Literal["current", "old"], typer.Option(help="old: for transformers up to 5.17; of a checkpoint the raw one.")
    ] = "current",
    license_id: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="What the model card says, such as apache-2.0.")
    ] = None,
) -> None:
    """Write a clean adapter folder to hand on, with a model card; or a checkpoint in another layout."""
    with prepared(ctx, str(source)):
        from aria_finetune.adapter.export import export_any

    written = export_any(source, output, base=base, layout=layout, license_id=license_id)
    typer.echo(f"wrote {', '.join(written)} to {output}/")


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this one.")] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Put it into the current folder, with its data.")] = False,
) -> None:
    """List the shipped recipes, show one, or copy one into the current folder."""
    from aria_finetune.shipped_recipes import copy_recipe, describe_recipes, show_recipe

    if copy and name is None:
        raise typer.BadParameter("say which recipe: recipes NAME --copy", param_hint="--copy")
    if name is None:
        typer.echo(describe_recipes())
    else:
        typer.echo(f"copied {copy_recipe(name, Path.cwd())}" if copy else show_recipe(name), nl=copy)


@app.command()
def doctor(ctx: typer.Context) -> None:
    """Say what this machine has, what is missing, and how to get it."""
    with prepared(ctx):
        from aria_finetune.doctor import examine

    findings = examine()
    for finding in findings:
        typer.echo(finding.describe())
    if any(finding.fatal for finding in findings):
        raise typer.Exit(2)


@contextmanager
def prepared(ctx: typer.Context, model: str | None = None) -> Iterator[None]:
    """Have what a command needs imported quickly, and quietly unless `--debug` was given; libraries stay off the network if
    `model` is on this machine.
    """
    from aria_finetune.libraries import names_local_model, prepare_libraries, quick_imports

    with quick_imports():
        prepare_libraries(debug=bool(ctx.obj), offline=model is not None and names_local_model(model))
        yield


def console(*, stderr: bool = False) -> Any:
    """Where progress and tables go: standard output, as wide as it is, or 100 columns in a file; or standard error.

    Lines are not wrapped: a secret that goes over two of them would not be known as one.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(markup=False, soft_wrap=True, stderr=stderr, width=None if stream.isatty() else 100)


if __name__ == "__main__":
    app()
