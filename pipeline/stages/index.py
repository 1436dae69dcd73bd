"""Stage index: embed every document once."""

from __future__ import annotations

from pipeline.config import Params
from pipeline.learn.encoder import load_encoder
from pipeline.learn.index import PictureFolder, build_index
from pipeline.progress import track
from pipeline.store import load_documents
from pipeline.tracking import StageRun
from pipeline.workspace import Workspace


def run(params: Params, workspace: Workspace, run: StageRun) -> dict[str, float]:
    """Write `index_dir`: vectors, ids, FAISS index and what they were made with.

    Raises:
        StageError: prepare has not run or found no documents.
        ModelError: the encoder cannot be loaded.
        DataError: a picture cannot be read.
    """
    documents = load_documents(workspace.tables_dir / "documents.parquet")
    encoder = load_encoder(params.scorer)
    run.set_tags({"encoder_digest": encoder.digest})
    with track("index: documents", len(documents)) as advance:
        built = build_index(
            encoder,
            documents,
            PictureFolder(workspace.data_dir, params.data.max_image_pixels),
            workspace.index_dir,
            workspace.checkpoints_dir / "index",
            batch_size=params.scorer.batch_size,
            advance=advance,
        )
    figures = {
        "num_documents": float(built.num_documents),
        "num_resumed": float(built.num_resumed),
        "num_images": float(built.num_images),
        "dim": float(encoder.dim),
    }
    if built.num_images:
        figures["images_per_s"] = built.num_images / built.seconds
    return figures
