# shellcheck shell=dash
# A pool of 2 MiB that is used up while a NIC fills its ring.

SECOND=0000:00:12.0

step1() {
  scenario control-exhausted
  try "devdax from memmap=" devdax 0
  try "the NIC is bound" bind "$NIC"
  try "a second one is bound" bind $SECOND
  expect 0 "a pool that is used up refuses, and goes on" raw_pool "$NIC" /dev/dax0.0 $SECOND
  show_out
  # One line for each refused call: two mappings by one table, a container, one in the middle.
  lines=$(dmesg | grep -c "the pool of 512 pages is exhausted")
  if [ "$lines" = 4 ]; then
    say "ok $SCENARIO: the kernel's log says so, once for each"
  else
    dmesg | grep -e preserve -e exhausted
    fail "the kernel's log says so $lines times"
  fi
  [ -z "$(cat /sys/kernel/iommu_preserve/domains)" ] || fail "a domain is left"
  used=$(cat /sys/kernel/iommu_preserve/pool_used)
  if [ "$used" -gt 24576 ]; then fail "the pool is not empty again: $used bytes"; fi
  kernel_is_calm
  done_with "$SCENARIO"
}
