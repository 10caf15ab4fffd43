#include "scoreprior/io/png.h"

#include <png.h>

#include <csetjmp>
#include <cstring>
#include <string>
#include <string_view>

#include "scoreprior/core/errors.h"
#include "scoreprior/io/atomic_file.h"

namespace scoreprior::io {
namespace {

struct PngSource {
  const std::string* bytes;
  size_t at = 0;
};
// libpng's errors leave by longjmp, so the message is kept here and thrown after the jump.
struct PngMessage {
  char text[160] = "";
};

void png_keep_error(png_structp png, png_const_charp message) {
  auto* kept = static_cast<PngMessage*>(png_get_error_ptr(png));
  std::strncpy(kept->text, message, sizeof kept->text - 1);
  png_longjmp(png, 1);
}
void png_ignore_warning(png_structp, png_const_charp) {}

void png_take_bytes(png_structp png, png_bytep out, png_size_t n) {
  auto* source = static_cast<PngSource*>(png_get_io_ptr(png));
  if (n > source->bytes->size() - source->at) png_error(png, "truncated");
  std::memcpy(out, source->bytes->data() + source->at, n);
  source->at += n;
}
void png_append_bytes(png_structp png, png_bytep in, png_size_t n) {
  auto* sink = static_cast<std::vector<uint8_t>*>(png_get_io_ptr(png));
  try {
    sink->insert(sink->end(), in, in + n);
  } catch (...) {
    png_error(png, "out of memory");
  }
}
void png_no_flush(png_structp) {}

// Both return false after an error; nothing with a destructor lives in these frames.
bool png_decode(PngSource& source, PngMessage& message, Raster& image,
                std::vector<png_bytep>& rows) {
  png_structp png =
      png_create_read_struct(PNG_LIBPNG_VER_STRING, &message, png_keep_error, png_ignore_warning);
  png_infop info = png ? png_create_info_struct(png) : nullptr;
  if (!info) {
    png_destroy_read_struct(&png, nullptr, nullptr);
    return false;
  }
  if (setjmp(png_jmpbuf(png))) {
    png_destroy_read_struct(&png, &info, nullptr);
    return false;
  }
  png_set_read_fn(png, &source, png_take_bytes);
  png_read_info(png, info);
  // Deflate packs 1032 times at most.
  if (png_get_rowbytes(png, info) >
      uint64_t{1040} * source.bytes->size() / png_get_image_height(png, info))
    png_error(png, "damaged or truncated: it announces more pixels than the file can hold");
  png_set_expand(png);  // palette -> RGB, 1/2/4 bits -> 8, transparency -> alpha
  png_set_scale_16(png);
  if (png_get_color_type(png, info) == PNG_COLOR_TYPE_GRAY_ALPHA ||
      (png_get_color_type(png, info) == PNG_COLOR_TYPE_GRAY &&
       png_get_valid(png, info, PNG_INFO_tRNS)))
    png_set_gray_to_rgb(png);
  png_set_interlace_handling(png);
  png_read_update_info(png, info);
  image.width = png_get_image_width(png, info);
  image.height = png_get_image_height(png, info);
  image.channels = png_get_channels(png, info);
  image.data.resize(static_cast<size_t>(image.width * image.height * image.channels));
  rows.resize(static_cast<size_t>(image.height));
  for (int64_t y = 0; y < image.height; ++y)
    rows[y] = image.data.data() + y * image.width * image.channels;
  png_read_image(png, rows.data());
  png_read_end(png, nullptr);
  png_destroy_read_struct(&png, &info, nullptr);
  return true;
}

bool png_encode(const Raster& image, PngMessage& message, std::vector<uint8_t>& out) {
  png_structp png =
      png_create_write_struct(PNG_LIBPNG_VER_STRING, &message, png_keep_error, png_ignore_warning);
  png_infop info = png ? png_create_info_struct(png) : nullptr;
  if (!info) {
    png_destroy_write_struct(&png, nullptr);
    return false;
  }
  if (setjmp(png_jmpbuf(png))) {
    png_destroy_write_struct(&png, &info);
    return false;
  }
  png_set_write_fn(png, &out, png_append_bytes, png_no_flush);
  const int type = image.channels == 1   ? PNG_COLOR_TYPE_GRAY
                   : image.channels == 3 ? PNG_COLOR_TYPE_RGB
                                         : PNG_COLOR_TYPE_RGB_ALPHA;
  png_set_IHDR(png, info, static_cast<png_uint_32>(image.width),
               static_cast<png_uint_32>(image.height), 8, type, PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  png_write_info(png, info);
  for (int64_t y = 0; y < image.height; ++y)
    png_write_row(png, image.data.data() + y * image.width * image.channels);
  png_write_end(png, info);
  png_destroy_write_struct(&png, &info);
  return true;
}

}  // namespace

Raster read_png(const std::filesystem::path& path) {
  require_file(path, "picture");
  const std::string bytes = read_text(path);
  if (bytes.size() < 8 || png_sig_cmp(reinterpret_cast<png_const_bytep>(bytes.data()), 0, 8) != 0)
    throw DataError(path.string() + ": not a PNG file");
  PngSource source{&bytes};
  PngMessage message;
  Raster image;
  std::vector<png_bytep> rows;
  if (!png_decode(source, message, image, rows))
    throw DataError(path.string() + ": " + (message.text[0] ? message.text : "unreadable PNG"));
  return image;
}

std::vector<uint8_t> encode_png(const Raster& image) {
  SP_CHECK(image.channels == 1 || image.channels == 3 || image.channels == 4, "encode_png",
           "expected 1, 3 or 4 channels, got ", image.channels);
  SP_CHECK(
      image.width > 0 && image.height > 0 &&
          static_cast<int64_t>(image.data.size()) == image.width * image.height * image.channels,
      "encode_png", "expected ", image.width, " x ", image.height, " x ", image.channels,
      " bytes, got ", image.data.size());
  std::vector<uint8_t> out;
  PngMessage message;
  if (!png_encode(image, message, out)) throw IoError(std::string("PNG: ") + message.text);
  return out;
}

void write_png(const std::filesystem::path& path, const Raster& image) {
  const std::vector<uint8_t> bytes = encode_png(image);
  write_text(path, std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

}  // namespace scoreprior::io
