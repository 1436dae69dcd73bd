"""Stage index: embed every document once."""

from __future__ import annotations

import logging

from pipeline.config import Params
from pipeline.errors import StageError
from pipeline.files.images import PictureFolder
from pipeline.files.store import load_documents, load_ids, writing
from pipeline.process.progress import track
from pipeline.retrieval.encoder import load_encoder
from pipeline.retrieval.imported_pictures import load_imported_pictures
from pipeline.retrieval.index import build_index, count_without_picture, hash_file
from pipeline.runs.tracking import StageRun
from pipeline.workspace import Workspace

logger = logging.getLogger(__name__)


def run(params: Params, workspace: Workspace, run: StageRun) -> dict[str, float]:
    """Write `index_dir`: vectors, ids, FAISS index and what they were made with.

    With `data.faiss_index` the vectors of pictures come from there, once they are found to be this encoder's.

    Raises:
        StageError: prepare has not run or found no documents, or none of them has a picture and the encoder knows no
            text.
        ModelError: the encoder cannot be loaded.
        DataError: a picture cannot be read, or the imported index is damaged or not this encoder's.
    """
    documents_path = workspace.tables_dir / "documents.parquet"
    documents = load_documents(documents_path)
    encoder = load_encoder(params.scorer, params.batches.scorer)
    run.set_tags({"encoder_digest": encoder.digest})
    pictures = PictureFolder(workspace.data_dir, params.data.max_image_pixels)
    imported, num_checked = None, 0
    if params.data.faiss_index is not None:
        order = load_ids(workspace.tables_dir / "document_order.parquet", stage="prepare")
        imported = load_imported_pictures(workspace.data_dir / params.data.faiss_index, order, encoder)
        num_checked = imported.check_against(encoder, documents, pictures.load_squashed)
    num_unseen = 0 if encoder.has_text else count_without_picture(documents, imported)
    if num_unseen:
        message = f"index: {num_unseen} of {len(documents)} documents have no picture"
        if num_unseen == len(documents):
            raise StageError(f"{message}, and the encoder that scorer.path names knows no text")
        logger.warning("%s: the encoder knows no text, so every query scores them 0", message)
    shards_dir = workspace.checkpoints_dir / "index"
    with track("index: documents", len(documents)) as advance, writing(shards_dir):
        built = build_index(
            encoder,
            documents,
            pictures,
            workspace.index_dir,
            shards_dir,
            table_sha256=hash_file(documents_path),
            batch_size=params.batches.scorer,
            advance=advance,
            imported=imported,
        )
    run.note({"num_resumed": built.num_resumed, "num_images_embedded": built.num_images})
    if built.num_images:
        run.note({"images_per_s": built.num_images / built.seconds})
    num_images = 0 if imported is not None else sum(len(document.image_paths) for document in documents)
    figures = {
        "num_documents": float(built.num_documents),
        "num_images": float(num_images),
        "dim": float(encoder.dim),
    }
    if not encoder.has_text:
        figures["num_without_picture"] = float(num_unseen)
    if imported is not None:
        figures["num_imported"] = float(len(imported))
        figures["num_spot_checked"] = float(num_checked)
    return figures
