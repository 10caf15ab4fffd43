#pragma once
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace scoreprior::io {

/// Writes a file whole or not at all: `write` fills a temporary name in the same folder, which is
/// fsynced and renamed over `path`. Throws CannotCreateError when the folder cannot be written,
/// IoError when writing fails (disk full); the previous file is then intact and no temporary is
/// left.
void write_atomically(const std::filesystem::path& path,
                      const std::function<void(const std::filesystem::path& temporary)>& write);

void write_text(const std::filesystem::path& path, std::string_view text);

/// The whole file. Throws MissingFileError.
std::string read_text(const std::filesystem::path& path);

/// Creates a folder and its parents, and removes temporary files that killed processes left in it;
/// CannotCreateError when it cannot be made or is not writable.
void make_folder(const std::filesystem::path& path);

/// Throws MissingFileError "<what> <path> does not exist" unless it is a readable file.
void require_file(const std::filesystem::path& path, const std::string& what);

}  // namespace scoreprior::io
