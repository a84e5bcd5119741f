# shellcheck shell=dash
# Two units: QEMU's, with the NIC, and one that a program on the host plays (lib/dmar_unit.c), with a
# device that does no DMA. Both devices are in containers of their own, held through the kexec.
#
#   vm.reason=WHY   the tables of the second unit's device were damaged on the way

QUIET=0000:00:15.0

step1() {
  scenario "$(parameter vm.scenario)"
  dmesg | grep DMAR | sed 's/^/    /'
  units_are_two
  for n in 0 1; do try "devdax $n from memmap=" devdax $n; done
  for device in $NIC $QUIET; do try "$device is bound" bind "$device"; done
  boot_files
  # The next kernel is told of both units as this one was.
  try "an initramfs with the table" sh -c "cat /vm/dmar.cpio /boot/initrd >/boot/initrd.units"
  try "kexec image loads" kexec -s -l /boot/vmlinuz --initrd=/boot/initrd.units \
    "--command-line=$(next_cmdline)"
  expect 0 "the second unit's device is held" raw_units hold $QUIET /dev/dax1.0
  show_out
  expect 0 "the ring runs" raw_adopt run "$NIC" /dev/dax0.0
  show_out
  cat /sys/kernel/iommu_preserve/domains
  roots_are_in_the_pool
  leave 2 last_words
}

last_words() {
  raw_adopt mark /dev/dax1.0 3
  raw_adopt mark /dev/dax0.0 3
  kexec -e
}

units_are_two() {
  try "two units" [ "$(find /sys/class/iommu/ -name 'dmar*' | wc -l)" = 2 ]
  for unit in /sys/class/iommu/dmar*/intel-iommu; do
    echo "    $unit: at $(cat "$unit/address"), cap $(cat "$unit/cap"), ecap $(cat "$unit/ecap")"
  done
}

# roots_are_in_the_pool: of both units, and so are the context tables and entries of both devices.
roots_are_in_the_pool() {
  mount -t debugfs none /sys/kernel/debug 2>/dev/null
  roots=$(sed -n 's/.*Root Table Address: *\(0x[0-9a-f]*\).*/\1/p' \
    /sys/kernel/debug/iommu/intel/dmar_translation_struct)
  contexts=$(sed -n 's/^device .* context=\([^ ]*\) .*/\1/p' /sys/kernel/iommu_preserve/domains)
  base=$(cat /sys/kernel/iommu_preserve/pool_base)
  size=$(cat /sys/kernel/iommu_preserve/pool_size)
  inside=0
  for address in $roots $contexts; do
    [ $((address >= base && address < base + size)) = 1 ] && inside=$((inside + 1))
  done
  units=$(sed -n 's/^device .* unit=\([^ ]*\) .*/\1/p' /sys/kernel/iommu_preserve/domains | sort -u | wc -l)
  echo "    roots $(echo "$roots" | xargs) contexts $(echo "$contexts" | xargs) of $units units"
  try "both root tables and both context entries are in the pool" [ "$inside $units" = "4 2" ]
}

step2() {
  scenario "$(parameter vm.scenario)"
  units_are_two
  dmesg | grep -e preserve -e DMAR | sed 's/^/    /'
  cat /sys/kernel/iommu_preserve/domains
  try "both root tables were taken over" [ "$(dmesg | grep -c 'took over root table')" = 2 ]
  for device in $NIC $QUIET; do try "$device is bound again" bind "$device"; done
  expect 0 "the NIC is adopted" raw_adopt adopt "$NIC" /dev/dax0.0
  show_out
  reason=$(parameter vm.reason)
  if [ -n "$reason" ]; then
    expect 0 "the second unit's device is refused" \
      grep "^refused $QUIET.* reason=$reason" /sys/kernel/iommu_preserve/domains
  else
    expect 0 "the second unit's device is taken up" raw_units take $QUIET /dev/dax1.0
    show_out
  fi
  grep -v ^refused /sys/kernel/iommu_preserve/domains && fail "a domain is left"
  used=$(cat /sys/kernel/iommu_preserve/pool_used)
  # One more root table and its context table than with one unit.
  if [ "$used" -gt 32768 ]; then fail "the pool is not empty again: $used bytes"; fi
  say "ok $SCENARIO: the pool holds $used bytes"
  kernel_is_calm
  done_with "$SCENARIO"
}
