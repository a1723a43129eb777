"""Model folders of the settings, and how many images are segmented at once."""

from pathlib import Path

from app.errors import SettingsError
from app.inference.batching import MAX_BATCH_SIZE
from app.inference.cuda import nvidia_device_present
from app.inference.model_card import ModelFolder, default_name, read_model_folder
from app.settings import Settings

GPU_WORKERS = MAX_BATCH_SIZE + 2  # a full batch is queued while another one runs


def max_concurrent_requests(settings: Settings) -> int:
    """Return the number of requests that may run concurrently."""
    on_gpu = settings.device != "cpu" and nvidia_device_present()
    return max(GPU_WORKERS, settings.workers) if on_gpu else settings.workers


def model_folders(models_dir: Path) -> list[Path]:
    """List the models directory's folders, sorted by name, without hidden ones."""
    if not models_dir.is_dir():
        return []
    return sorted(p for p in models_dir.iterdir() if p.is_dir() and not p.name.startswith("."))


def check_models(settings: Settings) -> None:
    """Raise SettingsError without a model folder, or for a default model that does not exist."""
    names = [path.name for path in model_folders(settings.models_dir)]
    if not names:
        raise SettingsError(
            f"SEGCAL_MODELS_DIR: expected a folder of models, got none in {settings.models_dir}"
        )
    if settings.default_model not in (None, *names):
        raise SettingsError(
            f"SEGCAL_DEFAULT_MODEL: expected one of {names}, got {settings.default_model!r}"
        )


def find_model(settings: Settings, name: str | None) -> ModelFolder:
    """Read one model's folder by name, or the default or only one; raises SettingsError."""
    check_models(settings)
    folders = {path.name: path for path in model_folders(settings.models_dir)}
    chosen = name or settings.default_model
    if chosen is None:
        chosen = default_name({n: read_model_folder(path) for n, path in folders.items()}, None)
    if chosen not in folders:
        raise SettingsError(f"--model: expected one of {sorted(folders)}, got {chosen!r}")
    return read_model_folder(folders[chosen])
