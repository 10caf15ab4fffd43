#pragma once
#include <cstdint>
#include <string>

namespace scoreprior::io::detail {

bool is_gzip(const std::string& bytes);
/// The content of a gzip file (several members are joined). DataError when it is damaged, truncated
/// or, with `limit` > 0, longer than `limit` bytes.
std::string gunzip(const std::string& bytes, const std::string& name, uint64_t limit = 0);
/// The first `count` bytes of the content, or fewer; damage beyond them is not seen.
std::string gunzip_first(const std::string& bytes, const std::string& name, size_t count);
std::string gzip(const std::string& bytes);

}  // namespace scoreprior::io::detail
