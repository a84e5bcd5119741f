#include "fs/lines.h"

#include <fmt/format.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "persist/model/json.h"

namespace holdfast::fs {
namespace {

constexpr std::array<char, 512> kHexPairs = [] {
  std::array<char, 512> out{};
  const char* digits = "0123456789abcdef";
  for (size_t i = 0; i < 256; ++i) {
    out[2 * i] = digits[i >> 4];
    out[2 * i + 1] = digits[i & 15];
  }
  return out;
}();

char* put(char* out, std::string_view text) {
  std::memcpy(out, text.data(), text.size());
  return out + text.size();
}

void pad(std::vector<RegionText>& regions, std::string& unknown) {
  size_t widest = unknown.size();
  for (const auto& region : regions) widest = std::max(widest, region.text.size());
  for (auto& region : regions) region.text.resize(widest, ' ');
  unknown.resize(widest, ' ');
  std::ranges::sort(regions, {}, &RegionText::region);
}

const std::string& text_of(const std::vector<RegionText>& regions, const std::string& unknown,
                           uint32_t region) {
  const auto it = std::ranges::lower_bound(regions, region, {}, &RegionText::region);
  return it != regions.end() && it->region == region ? it->text : unknown;
}

constexpr size_t kMapsHead = 16 + 1 + 16 + 1 + 4 + 1 + 16 + 1;
constexpr std::string_view kJsonIova = " {\"iova\":\"0x";
constexpr std::string_view kJsonSize = "\",\"size\":\"0x";
constexpr std::string_view kJsonOffset = "\",\"offset\":\"0x";
constexpr std::string_view kJsonAccess = "\",\"access\":\"";
constexpr std::string_view kJsonRegion = "\",\"region\":";

}  // namespace

char* put_hex(char* out, uint64_t value) {
  for (int shift = 56; shift >= 0; shift -= 8, out += 2)
    std::memcpy(out, &kHexPairs[2 * ((value >> shift) & 0xff)], 2);
  return out;
}

MapsFormat::MapsFormat(const Manifest& manifest) : unknown_("00:00 0 ?") {
  for (const auto& region : manifest.regions)
    regions_.push_back(
        {region.id, fmt::format("{:02x}:{:02x} {} {}", major(region.file_device),
                                minor(region.file_device), region.file_inode, region.name)});
  pad(regions_, unknown_);
  width_ = kMapsHead + unknown_.size() + 1;
}

void MapsFormat::render(const Mapping& mapping, char* out) const {
  out = put_hex(out, mapping.iova);
  *out++ = '-';
  out = put_hex(out, mapping.end());
  *out++ = ' ';
  *out++ = (mapping.access & kAccessRead) != 0 ? 'r' : '-';
  *out++ = (mapping.access & kAccessWrite) != 0 ? 'w' : '-';
  out = put(out, "-s ");
  out = put_hex(out, mapping.region_offset);
  *out++ = ' ';
  out = put(out, text_of(regions_, unknown_, mapping.region));
  *out = '\n';
}

MapsJsonFormat::MapsJsonFormat(const Manifest& manifest, const ContainerRecord& record,
                               uint64_t count)
    : unknown_("null}") {
  for (const auto& region : manifest.regions)
    regions_.push_back({region.id, Json(region.name).dump() + "}"});
  pad(regions_, unknown_);
  Json head = json_document("mappings");
  head["arena"] = manifest.arena.text();
  head["generation"] = manifest.number;
  head["container"] = record.container.name;
  head["count"] = count;
  header_ = head.dump();
  header_.pop_back();  // the closing brace comes last
  header_ += ",\"mappings\":[\n";
  footer_ = "]}\n";
  width_ = kJsonIova.size() + kJsonSize.size() + kJsonOffset.size() + 3 * 16 + kJsonAccess.size() +
           2 + kJsonRegion.size() + unknown_.size() + 2;
}

void MapsJsonFormat::render(const Mapping& mapping, bool last, char* out) const {
  out = put_hex(put(out, kJsonIova), mapping.iova);
  out = put_hex(put(out, kJsonSize), mapping.size);
  out = put_hex(put(out, kJsonOffset), mapping.region_offset);
  out = put(out, kJsonAccess);
  *out++ = (mapping.access & kAccessRead) != 0 ? 'r' : '-';
  *out++ = (mapping.access & kAccessWrite) != 0 ? 'w' : '-';
  out = put(out, kJsonRegion);
  out = put(out, text_of(regions_, unknown_, mapping.region));
  *out++ = last ? ' ' : ',';
  *out = '\n';
}

}  // namespace holdfast::fs
