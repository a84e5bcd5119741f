# shellcheck shell=dash
# Two NICs, both opted in: vm.together=yes in one container, else in one each. Of the latter the first
# may have been damaged on the way (vm.reason), or the second one taken out (vm.removed=yes).
#
#   vm.second=BDF  where the second one is, if not at 00:12.0

SECOND=$(parameter vm.second)
SECOND=${SECOND:-0000:00:12.0}

step1() {
  scenario "$(parameter vm.scenario)"
  for n in 0 1; do try "devdax $n from memmap=" devdax $n; done
  for nic in $NIC $SECOND; do try "$nic is bound to vfio-pci" bind "$nic"; done
  try "kexec image loads" plain_load
  if [ "$(parameter vm.together)" = yes ]; then
    expect 0 "both rings run" raw_pair run "$NIC" /dev/dax0.0 "$SECOND" /dev/dax1.0
  else
    expect 0 "the second ring runs" raw_adopt run "$SECOND" /dev/dax1.0
    expect 0 "the first ring runs" raw_adopt run "$NIC" /dev/dax0.0
  fi
  show_out
  leave 2 last_words
}

last_words() {
  raw_adopt mark /dev/dax1.0 3
  raw_adopt mark /dev/dax0.0 3
  kexec -e
}

step2() {
  scenario "$(parameter vm.scenario)"
  cat /sys/kernel/iommu_preserve/domains
  if [ "$(parameter vm.removed)" = yes ]; then
    one_is_gone
    return
  fi
  if [ "$(parameter vm.split)" = yes ]; then
    neither_goes_on
    return
  fi
  for nic in $NIC $SECOND; do try "$nic is bound again" bind "$nic"; done
  reason=$(parameter vm.reason)
  if [ "$(parameter vm.together)" = yes ]; then
    expect 0 "both adopted" raw_pair adopt "$NIC" /dev/dax0.0 "$SECOND" /dev/dax1.0
    show_out
  elif [ -n "$reason" ]; then
    expect 0 "one is refused" grep "^refused $NIC.* reason=$reason" /sys/kernel/iommu_preserve/domains
    expect 0 "the other is adopted" raw_adopt adopt "$SECOND" /dev/dax1.0
    show_out
  else
    expect 0 "one does not take the other's group" raw_pair mixed "$NIC" "$SECOND"
    show_out
    expect 0 "one is adopted" raw_adopt adopt "$NIC" /dev/dax0.0
    expect 0 "and the other" raw_adopt adopt "$SECOND" /dev/dax1.0
    show_out
  fi
  grep -v ^refused /sys/kernel/iommu_preserve/domains && fail "a domain is left"
  kernel_is_calm
  sleep 1
  echo
  done_with "$SCENARIO"
}

# its_entry_goes: of a container with both, the one that is there is adopted and closed; what is freed then
# is not left in the entry of the other.
its_entry_goes() {
  context=$(sed -n "s/^device $SECOND root=.* context=\([^ ]*\) .*/\1/p" /sys/kernel/iommu_preserve/domains)
  try "its entry is present" is_present "$context"
  expect 0 "the first is adopted, thawed and closed" raw_pair alone "$NIC" /dev/dax0.0 "$SECOND" /dev/dax1.0
  show_out
  [ -z "$(cat /sys/kernel/iommu_preserve/domains)" ] || fail "a domain is left"
  expect 1 "the entry of the one that is gone leads nowhere" is_present "$context"
  kernel_is_calm
  done_with "$SCENARIO"
}

# is_present CONTEXT: the entry at this address in the pool.
is_present() {
  base=$(cat /sys/kernel/iommu_preserve/pool_base)
  low=$(dd if=/sys/kernel/iommu_preserve/pool bs=1 skip=$(($1 - base)) count=1 2>/dev/null | od -An -tu1)
  [ $((low & 1)) = 1 ]
}

# neither_goes_on: no inherited domain, and no device that keeps its entry.
neither_goes_on() {
  expect 0 "one is refused" grep "^refused .* reason=context" /sys/kernel/iommu_preserve/domains
  expect 1 "the other has no entry either" grep "^device " /sys/kernel/iommu_preserve/domains
  # 20 s each if nothing arrives: the host goes on sending.
  for dax in 0 1; do
    expect 1 "nothing arrives in dax$dax.0" raw_adopt more /dev/dax$dax.0
  done
  sleep 1
  echo
  kernel_is_calm
  done_with "$SCENARIO"
}

# one_is_gone: the other one is adopted; what is left of the one that is gone can be seen, and ended.
one_is_gone() {
  try "the second NIC is gone" [ ! -e "/sys/bus/pci/devices/$SECOND" ]
  try "its domain is there all the same" grep "^device $SECOND root=" /sys/kernel/iommu_preserve/domains
  root=$(sed -n "s/^device $SECOND root=\([^ ]*\) .*/\1/p" /sys/kernel/iommu_preserve/domains)
  try "held, by nobody" grep "^domain root=$root .*state=held,inherited,parked" /sys/kernel/iommu_preserve/domains
  try "the first NIC is bound again" bind "$NIC"
  if [ "$(parameter vm.together)" = yes ]; then
    its_entry_goes
    return
  fi
  expect 0 "it is adopted" raw_adopt adopt "$NIC" /dev/dax0.0
  show_out
  before=$(cat /sys/kernel/iommu_preserve/pool_used)
  expect 0 "what is left of the second one is released" sh -c "echo $root >/sys/kernel/iommu_preserve/release"
  expect 1 "once" sh -c "echo $root >/sys/kernel/iommu_preserve/release"
  after=$(cat /sys/kernel/iommu_preserve/pool_used)
  say "the pool held $before bytes, now $after"
  # The header, a root table, context tables of two buses and what this kernel's own devices have.
  if [ "$after" -gt 24576 ]; then fail "the pool is not empty again: $after bytes"; fi
  [ -z "$(cat /sys/kernel/iommu_preserve/domains)" ] || fail "a domain is left"
  kernel_is_calm
  done_with "$SCENARIO"
}
