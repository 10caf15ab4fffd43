#include "scoreprior/io/tiff.h"

#include <ATen/ATen.h>
#include <tiffio.h>

#include <cstring>
#include <vector>

#include "scoreprior/core/errors.h"
#include "scoreprior/io/atomic_file.h"
#include "scoreprior/io/detail/guarded_read.h"

namespace scoreprior::io {
namespace {

struct TiffCloser {
  TIFF* file = nullptr;
  ~TiffCloser() {
    if (file) TIFFClose(file);
  }
};

struct TiffPage {
  uint32_t width = 0, height = 0;
  uint16_t bits = 1, samples = 1, format = SAMPLEFORMAT_UINT, planar = PLANARCONFIG_CONTIG,
           orientation = ORIENTATION_TOPLEFT, photometric = 0;
  bool operator!=(const TiffPage& o) const {
    return width != o.width || height != o.height || bits != o.bits || samples != o.samples ||
           format != o.format;
  }
};

constexpr int64_t kTiffMaxPages = 100000;

TiffPage read_page_header(TIFF* file, const std::string& name) {
  TiffPage p;
  TIFFGetField(file, TIFFTAG_IMAGEWIDTH, &p.width);
  TIFFGetField(file, TIFFTAG_IMAGELENGTH, &p.height);
  TIFFGetFieldDefaulted(file, TIFFTAG_BITSPERSAMPLE, &p.bits);
  TIFFGetFieldDefaulted(file, TIFFTAG_SAMPLESPERPIXEL, &p.samples);
  TIFFGetFieldDefaulted(file, TIFFTAG_SAMPLEFORMAT, &p.format);
  TIFFGetFieldDefaulted(file, TIFFTAG_PLANARCONFIG, &p.planar);
  TIFFGetFieldDefaulted(file, TIFFTAG_ORIENTATION, &p.orientation);
  TIFFGetField(file, TIFFTAG_PHOTOMETRIC, &p.photometric);
  if (p.width == 0 || p.height == 0) throw DataError(name + ": damaged: a page without pixels");
  if (p.orientation != ORIENTATION_TOPLEFT)
    throw DataError(name + ": a rotated or mirrored TIFF; write it with the first row on top");
  if (p.photometric == PHOTOMETRIC_PALETTE)
    throw DataError(name + ": a palette TIFF; convert it to grey or RGB first");
  if (p.samples < 1 || p.samples > 4)
    throw DataError(name + ": " + std::to_string(p.samples) +
                    " samples per pixel, expected 1 to 4");
  const bool integer = p.format == SAMPLEFORMAT_UINT || p.format == SAMPLEFORMAT_VOID;
  if (!(integer && (p.bits == 8 || p.bits == 16 || p.bits == 32)) &&
      !(p.format == SAMPLEFORMAT_IEEEFP && (p.bits == 32 || p.bits == 64)))
    throw DataError(name + ": " + std::to_string(p.bits) + "-bit " +
                    (integer ? "unsigned" : "signed or complex") +
                    " samples are not supported (8, 16, 32-bit unsigned; 32, 64-bit floats)");
  return p;
}

// One decoded strip or tile: `columns` x `rows` pixels, `step` samples a pixel, from (x, y) on.
void store_block(const TiffPage& p, const std::vector<char>& block, uint32_t x, uint32_t y,
                 uint32_t columns, uint32_t rows, uint32_t first_sample, uint32_t step, char* out) {
  const size_t item = p.bits / 8;
  for (uint32_t r = 0; r < rows && y + r < p.height; ++r)
    for (uint32_t c = 0; c < columns && x + c < p.width; ++c) {
      const char* from = block.data() + (static_cast<size_t>(r) * columns + c) * step * item;
      char* to = out + ((static_cast<size_t>(y) + r) * p.width + x + c) * p.samples * item +
                 first_sample * item;
      std::memcpy(to, from, step * item);
    }
}

void read_page(TIFF* file, const TiffPage& p, const std::string& name, char* out) {
  const bool tiled = TIFFIsTiled(file);
  const tmsize_t block_bytes = tiled ? TIFFTileSize(file) : TIFFStripSize(file);
  uint32_t columns = p.width, rows = p.height;
  if (tiled) {
    TIFFGetField(file, TIFFTAG_TILEWIDTH, &columns);
    TIFFGetField(file, TIFFTAG_TILELENGTH, &rows);
  } else {
    TIFFGetFieldDefaulted(file, TIFFTAG_ROWSPERSTRIP, &rows);
    rows = std::min(rows, p.height);
  }
  const uint32_t planes = p.planar == PLANARCONFIG_SEPARATE ? p.samples : 1;
  const uint32_t step = p.samples / planes;
  if (block_bytes <= 0 || columns == 0 || rows == 0 ||
      static_cast<uint64_t>(block_bytes) <
          static_cast<uint64_t>(columns) * rows * step * (p.bits / 8))
    throw DataError(name + ": damaged: impossible strips or tiles");
  std::vector<char> block(static_cast<size_t>(block_bytes));
  for (uint32_t plane = 0; plane < planes; ++plane)
    for (uint64_t y = 0; y < p.height; y += rows)
      for (uint64_t x = 0; x < p.width; x += columns) {
        const uint32_t x0 = static_cast<uint32_t>(x), y0 = static_cast<uint32_t>(y);
        const tmsize_t need =
            tiled ? block_bytes
                  : static_cast<tmsize_t>(static_cast<uint64_t>(std::min(rows, p.height - y0)) *
                                          columns * step * (p.bits / 8));
        const tmsize_t got =
            tiled ? TIFFReadEncodedTile(
                        file, TIFFComputeTile(file, x0, y0, 0, static_cast<uint16_t>(plane)),
                        block.data(), block_bytes)
                  : TIFFReadEncodedStrip(file,
                                         TIFFComputeStrip(file, y0, static_cast<uint16_t>(plane)),
                                         block.data(), block_bytes);
        if (got < need) throw DataError(name + ": damaged or truncated pixels");
        store_block(p, block, x0, y0, columns, rows, plane, step, out);
      }
}

at::ScalarType tiff_type(const TiffPage& p) {
  if (p.format == SAMPLEFORMAT_IEEEFP) return p.bits == 32 ? at::kFloat : at::kDouble;
  return p.bits == 8 ? at::kByte : p.bits == 16 ? at::kInt : at::kLong;
}

// 16 and 32-bit unsigned integers move to the next signed type, in place from the end.
void widen_samples(const TiffPage& p, char* data, size_t count) {
  if (p.format == SAMPLEFORMAT_IEEEFP || p.bits == 8) return;
  for (size_t i = count; i-- > 0;) {
    if (p.bits == 16) {
      uint16_t v;
      std::memcpy(&v, data + 2 * i, 2);
      const int32_t w = v;
      std::memcpy(data + 4 * i, &w, 4);
    } else {
      uint32_t v;
      std::memcpy(&v, data + 4 * i, 4);
      const int64_t w = v;
      std::memcpy(data + 8 * i, &w, 8);
    }
  }
}

void read_tiff_pages(const std::string& path, uint64_t file_bytes, detail::FindingsWriter& out) {
  TIFFSetErrorHandler(nullptr);
  TIFFSetWarningHandler(nullptr);
  TiffCloser tiff{TIFFOpen(path.c_str(), "r")};
  if (!tiff.file) throw DataError(path + ": not a TIFF file, or damaged");
  const TiffPage first = read_page_header(tiff.file, path);
  int64_t pages = 1;
  while (TIFFReadDirectory(tiff.file)) {
    if (read_page_header(tiff.file, path) != first)
      throw DataError(path + ": its pages differ in size or type");
    if (++pages > kTiffMaxPages) throw DataError(path + ": damaged: endless pages");
  }
  Shape shape = {first.height, first.width};
  if (pages > 1) shape.insert(shape.begin(), pages);
  if (first.samples > 1) shape.push_back(first.samples);
  detail::require_plausible(path, shape, first.bits / 8, file_bytes);
  char* pixels = static_cast<char*>(out.array("pixels", tiff_type(first), shape));
  const size_t samples = static_cast<size_t>(first.height) * first.width * first.samples;
  const size_t stride = samples * at::elementSize(tiff_type(first));
  for (int64_t page = 0; page < pages; ++page) {
    // One after the other: jumping to a page walks the chain from the first.
    if (!(page == 0 ? TIFFSetDirectory(tiff.file, 0) : TIFFReadDirectory(tiff.file)))
      throw DataError(path + ": damaged page " + std::to_string(page));
    if (read_page_header(tiff.file, path) != first)
      throw DataError(path + ": damaged page " + std::to_string(page));
    char* at = pixels + static_cast<size_t>(page) * stride;
    read_page(tiff.file, first, path, at);
    widen_samples(first, at, samples);
  }
}

}  // namespace

at::Tensor read_tiff(const std::filesystem::path& path) {
  require_file(path, "TIFF file");
  const std::string name = path.string();
  std::error_code ec;
  const uint64_t bytes = std::filesystem::file_size(path, ec);
  detail::Findings found = detail::read_guarded(
      path, "TIFF", [&](detail::FindingsWriter& out) { read_tiff_pages(name, bytes, out); });
  return found.arrays.at("pixels");
}

void write_tiff(const std::filesystem::path& path, const at::Tensor& pixels) {
  at::Tensor a = pixels.detach().to(at::kCPU);
  if (a.scalar_type() != at::kByte) a = a.to(at::kFloat);
  SP_CHECK(a.numel() > 0 && (a.dim() == 2 || a.dim() == 3), "write_tiff",
           "expected [H,W], [H,W,3] or [N,H,W], got ", a.sizes());
  const bool colour = a.dim() == 3 && a.size(2) == 3;
  if (!colour && a.dim() == 2) a = a.unsqueeze(0);
  if (colour) a = a.unsqueeze(0);
  a = a.contiguous();
  const int64_t height = a.size(1), width = a.size(2), samples = colour ? 3 : 1;
  const size_t row_bytes = static_cast<size_t>(width * samples) * a.element_size();
  write_atomically(path, [&](const std::filesystem::path& temporary) {
    TiffCloser tiff{TIFFOpen(temporary.c_str(), "w")};
    if (!tiff.file) throw CannotCreateError("cannot write " + path.string());
    for (int64_t page = 0; page < a.size(0); ++page) {
      TIFFSetField(tiff.file, TIFFTAG_IMAGEWIDTH, static_cast<uint32_t>(width));
      TIFFSetField(tiff.file, TIFFTAG_IMAGELENGTH, static_cast<uint32_t>(height));
      TIFFSetField(tiff.file, TIFFTAG_BITSPERSAMPLE, static_cast<int>(8 * a.element_size()));
      TIFFSetField(tiff.file, TIFFTAG_SAMPLESPERPIXEL, static_cast<int>(samples));
      TIFFSetField(tiff.file, TIFFTAG_SAMPLEFORMAT,
                   a.scalar_type() == at::kByte ? SAMPLEFORMAT_UINT : SAMPLEFORMAT_IEEEFP);
      TIFFSetField(tiff.file, TIFFTAG_PHOTOMETRIC,
                   colour ? PHOTOMETRIC_RGB : PHOTOMETRIC_MINISBLACK);
      TIFFSetField(tiff.file, TIFFTAG_PLANARCONFIG, PLANARCONFIG_CONTIG);
      TIFFSetField(tiff.file, TIFFTAG_ORIENTATION, ORIENTATION_TOPLEFT);
      TIFFSetField(tiff.file, TIFFTAG_COMPRESSION, COMPRESSION_ADOBE_DEFLATE);
      char* rows = static_cast<char*>(a.data_ptr()) +
                   static_cast<size_t>(page) * static_cast<size_t>(height) * row_bytes;
      for (int64_t y = 0; y < height; ++y)
        if (TIFFWriteScanline(tiff.file, rows + static_cast<size_t>(y) * row_bytes,
                              static_cast<uint32_t>(y), 0) != 1)
          throw IoError("cannot write " + path.string());
      if (!TIFFWriteDirectory(tiff.file)) throw IoError("cannot write " + path.string());
    }
  });
}

}  // namespace scoreprior::io
