# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034 # variables of `run` and for it
# The part of the initramfs that our sources change: Holdfast's binaries, the guest's programs and
# scripts. Sourced by `run`.

GUEST_CFLAGS="-std=gnu11 -O2 -g -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Werror
  -D_GNU_SOURCE"

# guest_program NAME SOURCE...: a program that knows only the kernel.
guest_program() {
  local name=$1
  shift
  # shellcheck disable=SC2086 # flags are words
  (cd "$here/guest" && cc $GUEST_CFLAGS -static -s -o "$IMAGE_ROOT/usr/bin/$name" "$@")
}

# build_image: $VM_INITRD (for QEMU and for kexec) and $VM_BOOT_TAR (what the guest kexecs).
build_image() {
  IMAGE_ROOT=$VM_DIR/root
  VM_INITRD=$VM_DIR/initrd.cpio
  VM_BOOT_TAR=$VM_DIR/boot.tar
  rm -rf "$IMAGE_ROOT"
  mkdir -p "$IMAGE_ROOT"/{usr/bin,vm/chains,lib,boot}
  guest_program vmexit vmexit.c
  guest_program raw_dma raw_dma.c edu.c vfio.c
  guest_program raw_loop raw_loop.c e1000e.c vfio.c
  install -m 755 "$here/guest/init" "$IMAGE_ROOT/init"
  install -m 644 "$here/guest/lib.sh" "$IMAGE_ROOT/vm/lib.sh"
  install -m 644 "$here"/chains/*.sh "$IMAGE_ROOT/vm/chains/"
  pack "$IMAGE_ROOT" "$VM_DIR/overlay.cpio"
  cat "$BASE_DIR/base.cpio" "$VM_DIR/overlay.cpio" >"$VM_INITRD"
  mkdir -p "$VM_DIR/boot"
  cp "$BASE_DIR/vmlinuz" "$VM_DIR/boot/vmlinuz"
  cp "$VM_INITRD" "$VM_DIR/boot/initrd"
  tar cf "$VM_BOOT_TAR" -C "$VM_DIR/boot" vmlinuz initrd
  rm -rf "${VM_DIR:?}/boot" "$VM_DIR/overlay.cpio"
}
