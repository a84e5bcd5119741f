#!/usr/bin/env bash
# kexec/linux/build.sh: builds the patched kernel that the proof boots, and prints its bzImage's path.
#
#   build.sh [--variant V]         fetch, apply, build; or nothing, if that has been done before
#   build.sh [--variant V] --path  where it is or would be, without building
#   build.sh --source F            leaves the source with the series applied in the new folder F
#   build.sh [--variant V] --each  checks and builds it patch by patch: each must stand by itself
#
# Variants, each the kernel of the proof and the fragment config.V on top: kunit (tests inside the kernel,
# time by function), debug (KASAN and lockdep; the tests too).
#
# Cached in $HOLDFAST_CACHE (${XDG_CACHE_HOME:-~/.cache}/holdfast) under a hash of all that goes in: the
# series, the fragments, this script, the source package's version, the compiler.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${HOLDFAST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/holdfast}
package=linux-source-6.12
# What the series was made for and tested with. A newer point release is taken if this one is gone.
tested=6.12.117-1~deb12u1

die() {
  printf 'kernel: %s\n' "$*" >&2
  exit 1
}
say() { printf 'kernel: %s\n' "$*" >&2; }

check_tools() {
  local tool
  for tool in make gcc ld flex bison bc ccache patch xz flock; do
    command -v "$tool" >/dev/null || die "$tool is missing; ./dev setup installs it"
  done
  echo '#include <libelf.h>' | gcc -E - >/dev/null 2>&1 ||
    die "libelf's headers are missing; ./dev setup installs them"
}

# apt's options for where the package comes from: the machine's own lists where they know it, else
# lists of our own; the machine's setup is never changed.
apt_options=(-o APT::Sandbox::User=root)
own_lists() {
  mkdir -p "$cache/apt/lists/partial" "$cache/apt/archives/partial"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian-security bookworm-security main" \
    >"$cache/apt/sources.list"
  apt_options+=(-o "Dir::Etc::sourcelist=$cache/apt/sources.list" -o Dir::Etc::sourceparts=-
    -o "Dir::State::lists=$cache/apt/lists" -o "Dir::Cache::archives=$cache/apt/archives"
    -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=)
  apt-get "${apt_options[@]}" -qq update >&2
}

versions() { apt-cache "${apt_options[@]}" madison "$package" 2>/dev/null | awk -F '|' '{ gsub(/ /, "", $2); print $2 }'; }

# The version to build: the tested one wherever it is to be had, also from the cache.
choose_version() {
  if [ -f "$cache/kernel-source/${package}_$tested.tar.xz" ]; then
    echo "$tested"
    return
  fi
  [ -n "$(versions)" ] || own_lists
  if versions | grep -qxF "$tested"; then
    echo "$tested"
  else
    versions | head -n 1
  fi
}

# fetch VERSION: leaves the source archive in $archive.
fetch() {
  local version=$1 folder
  archive=$cache/kernel-source/${package}_$version.tar.xz
  [ -f "$archive" ] && return
  mkdir -p "$cache/kernel-source"
  folder=$(mktemp -d "$cache/kernel-source/new.XXXXXX")
  say "fetching $package $version"
  [ -n "$(versions)" ] || own_lists
  (cd "$folder" && apt-get "${apt_options[@]}" -q download "$package=$version" >&2 && dpkg-deb -x ./*.deb .) ||
    die "cannot fetch $package $version"
  mv "$folder/usr/src/$package.tar.xz" "$archive"
  rm -rf "$folder"
}

# apply FOLDER: the series, in order, with no fuzz.
apply() {
  local patch
  while IFS= read -r patch; do
    patch -d "$1" -p1 -F 0 -s -f <"$here/patches/$patch" || die "$patch does not apply"
  done < <(grep -v -e '^#' -e '^$' "$here/patches/series")
}

unpack() { # FOLDER
  mkdir -p "$1"
  tar xf "$archive" -C "$1" --strip-components=1
  apply "$1"
}

key() { # VERSION
  {
    echo "$1"
    gcc --version | head -n 1
    cat "$here/build.sh" "${fragments[@]}" "$here/patches/series"
    while IFS= read -r patch; do cat "$here/patches/$patch"; done \
      < <(grep -v -e '^#' -e '^$' "$here/patches/series")
  } | sha256sum | cut -c1-16
}

configure() { # SOURCE
  make -s -C "$1" allnoconfig
  (cd "$1" && scripts/kconfig/merge_config.sh -m .config "${fragments[@]}" >/dev/null)
  make -s -C "$1" olddefconfig
}

compile() { # SOURCE TARGET...
  export CCACHE_BASEDIR=$1 CCACHE_NOHASHDIR=1
  export KBUILD_BUILD_TIMESTAMP=2026-01-01 KBUILD_BUILD_USER=holdfast KBUILD_BUILD_HOST=holdfast
  nice make -s -C "$1" -j "${HOLDFAST_JOBS:-$(nproc)}" CC="ccache gcc" "${@:2}" >&2
}

build() { # SOURCE
  local option
  configure "$1"
  while IFS= read -r option; do
    grep -qxF "$option" "$1/.config" || die "the fragments' $option got lost"
  done < <(grep -hx 'CONFIG_.*=y' "${fragments[@]}")
  compile "$1" bzImage
}

# What the series touches, and what includes what it touches.
touched=(arch/x86/ drivers/iommu/ drivers/pci/ drivers/vfio/ kernel/)

# each FOLDER: without patches first, so that a warning later is a patch's own. checkpatch asks about
# MAINTAINERS for every new file; the series adds none there.
each() {
  local patch log=$1.log
  mkdir -p "$1"
  tar xf "$archive" -C "$1" --strip-components=1
  configure "$1"
  compile "$1" "${touched[@]}"
  while IFS= read -r patch; do
    (cd "$1" && perl scripts/checkpatch.pl -q --ignore FILE_PATH_CHANGES "$here/patches/$patch" 2>/dev/null) ||
      die "checkpatch has something to say about $patch"
    patch -d "$1" -p1 -F 0 -s -f <"$here/patches/$patch" || die "$patch does not apply"
    configure "$1"
    compile "$1" "${touched[@]}" 2>&1 | tee "$log" >&2 || die "$patch does not build"
    [ ! -s "$log" ] || die "$patch does not build silently"
    say "$patch stands by itself"
  done < <(grep -v -e '^#' -e '^$' "$here/patches/series")
}

fragments=("$here/config")
variant=
if [ "${1:-}" = --variant ]; then
  variant=${2:-}
  case $variant in kunit | debug) ;; *) die "no variant $variant; there are: kunit debug" ;; esac
  fragments+=("$here/config.$variant")
  shift 2
fi

version=$(choose_version)
[ -n "$version" ] || die "no $package to be had; is the package mirror reachable?"
folder=$cache/linux-$(key "$version")

case ${1:-} in
  --path)
    echo "$folder/bzImage"
    exit
    ;;
  --source)
    if [ $# != 2 ] || [ -e "$2" ]; then die "usage: build.sh --source NEW-FOLDER"; fi
    fetch "$version"
    unpack "$2"
    exit
    ;;
  --each)
    check_tools
    fetch "$version"
    scratch=$(mktemp -d "$cache/each.XXXXXX")
    trap 'rm -rf "$scratch" "$scratch.log"' EXIT
    each "$scratch"
    exit
    ;;
  '') ;;
  *) die "usage: build.sh [--variant kunit|debug] [--path | --each] | --source NEW-FOLDER" ;;
esac

if [ ! -f "$folder/complete" ]; then
  check_tools
  # One build at a time; whoever waits finds the result.
  exec 9>"$cache/kernel.lock"
  flock 9
fi
if [ ! -f "$folder/complete" ]; then
  fetch "$version"
  rm -rf "$folder.new"
  unpack "$folder.new/source"
  say "building $package $version with the series${variant:+, variant $variant} (some 10 minutes, less with a warm ccache)"
  build "$folder.new/source"
  cp "$folder.new/source/arch/x86/boot/bzImage" "$folder.new/source/vmlinux" "$folder.new/"
  cp "$folder.new/source/.config" "$folder.new/config"
  echo "$version" >"$folder.new/version"
  rm -rf "$folder.new/source"
  touch "$folder.new/complete"
  rm -rf "$folder"
  mv "$folder.new" "$folder"
fi
echo "$folder/bzImage"
