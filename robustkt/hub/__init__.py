"""Publishing generations and taking them over: the published form, on disk and on the Hub. No torch at import."""

from robustkt.hub.folder import read_folder, write_folder
from robustkt.hub.form import File, folder_files

__all__ = ["File", "folder_files", "read_folder", "write_folder"]
