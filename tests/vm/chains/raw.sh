# shellcheck shell=dash
# Without Holdfast, on the patched kernel: a NIC fills its ring while the kernel is replaced. Unless a
# scenario says otherwise, the process that set it up is gone before the kexec and the hold keeps
# everything running.
#
#   vm.scenario=NAME  vm.how=  as raw_adopt run   vm.image=  what is kexec'd   vm.rounds=  kexecs
#   vm.last=  how the last kernel finds it: adopt, found, thawed, blocked, quiet, dumped
#   vm.reason=  what the last kernel says of a device it has blocked
#   vm.bell=BDF    a device that the host rings all the time, held too, its process alive to the end
#   vm.second=BDF  a second NIC, in a container that does not opt in, in the memory of dax1.0

OTHER=0000:00:13.0 # next to the bell

step1() {
  scenario "$(parameter vm.scenario)"
  how=$(parameter vm.how)
  try "devdax from memmap=" devdax 0
  try "the NIC is bound to vfio-pci" bind "$NIC"
  second=$(parameter vm.second)
  if [ -n "$second" ]; then
    try "devdax for the second NIC" devdax 1
    try "the second NIC is bound" bind "$second"
    run_ring "$second" /dev/dax1.0 plain
  fi
  bell=$(parameter vm.bell)
  if [ "$(parameter vm.image)" = none ]; then
    say "no image is loaded yet"
  else
    try "kexec image loads" load_image
  fi
  if [ -n "$bell" ]; then
    try "the bell is bound" bind "$bell"
    try "and a device in no container" bind "$OTHER"
    raw_bell run "$bell" /dev/dax0.0 "$OTHER" >/run/bell 2>&1 &
    wait_for 20 "the bell" grep -q "held, and rings" /run/bell
    sed 's/^/    /' /run/bell
  fi
  run_ring "$NIC" /dev/dax0.0 "${how:-leave}"
  [ "$(parameter vm.last)" = dumped ] && crash
  if [ "$(parameter vm.image)" = again ]; then try "the image is loaded once more" load_image; fi
  if [ "$(parameter vm.image)" = lines ]; then odd_command_lines; fi
  leave_ring 2
}

# run_ring BDF DAX HOW: in the background where it stays, until it is held.
run_ring() {
  case $3 in
    stay | interrupts | plain | hammer)
      raw_adopt run "$1" "$2" "$3" >"/run/ring${2#/dev/}" 2>&1 &
      wait_for 40 "the ring of $1" grep -q "phase 2" "/run/ring${2#/dev/}"
      sed 's/^/    /' "/run/ring${2#/dev/}"
      ;;
    *)
      expect 0 "the ring of $1 runs" raw_adopt run "$1" "$2" "$3"
      show_out
      try "with its process gone it masters the bus, in D0" is_running "$1"
      ;;
  esac
}

leave_ring() {
  leave "$1" last_words
}

last_words() {
  [ -n "$(parameter vm.second)" ] && raw_adopt mark /dev/dax1.0 3
  # A stray message is no more than information to a kernel.
  [ -n "$(parameter vm.bell)" ] && dmesg -n 8
  raw_adopt mark /dev/dax0.0 3
  kexec -e
}

# crash: with everything held and the NIC receiving, into a crash kernel.
crash() {
  try "a crash kernel is loaded" kexec -s -p /boot/vmlinuz --initrd=/boot/initrd \
    "--command-line=$(next_cmdline nr_cpus=1 reset_devices)"
  echo 2 >/state/step
  state_save
  splats
  say "crash on purpose"
  raw_adopt mark /dev/dax0.0 3
  drain
  echo c >/proc/sysrq-trigger
  fail "the kernel did not crash"
}

# is_dumped: the crash kernel is up and has the old one's memory.
is_dumped() {
  if [ "$(dd if=/proc/vmcore bs=1 skip=1 count=3 2>/dev/null)" = ELF ]; then
    say "ok $SCENARIO: the crash kernel has a dump"
  else
    fail "no dump"
  fi
  # 64 MiB of it, read to nowhere
  try "it can be read" dd if=/proc/vmcore of=/dev/null bs=1M count=64
}

# load_image: the next kernel, with what the scenario leaves out or changes.
load_image() {
  boot_files
  case $(parameter vm.image) in
    stock) kexec -s -l /boot/vmlinuz-stock --initrd=/boot/initrd "--command-line=$(next_cmdline)" ;;
    old-call) kexec -c -l /boot/vmlinuz --initrd=/boot/initrd "--command-line=$(next_cmdline)" ;;
    no-pool) MEMMAP=$(memmaps | sed 's/iommu_preserve=[^ ]*//') plain_load ;;
    moved-pool) MEMMAP=$(memmaps | sed 's/iommu_preserve=.*/iommu_preserve=16M@1312M/') plain_load ;;
    small-pool) MEMMAP=$(memmaps | sed 's/iommu_preserve=16M/iommu_preserve=8M/') plain_load ;;
    no-memory) MEMMAP=$(memmaps | sed 's/memmap=[^ ]*//g') plain_load ;;
    *) plain_load ;;
  esac
}

# odd_command_lines: what a loader might take for the same pool and an IOMMU that is on, and the kernel
# that is started with it does not. The last one is what is left loaded.
odd_command_lines() {
  is_not_armed elsewhere "-- iommu_preserve=16M@1344M"
  is_not_armed "" "intel_iommu=sm_on intel_iommu=on"
  is_not_armed "" "iommu=off iommu=pt"
  is_not_armed "" "intel_iommu=off -- intel_iommu=on"
  is_not_armed "" "mem=1340M"
  is_not_armed "" "memmap=1340M"
  is_not_armed "" "memmap=64K#16M,64K!1359M"
  try "an ordinary command line loads" plain_load "intel_iommu=sm_on,sm_off mem=64G memmap=64K!1360M"
  expect 0 "armed for it" raw_adopt rearm "$NIC" /dev/dax0.0
  is_not_armed "" "memmap=2M!1350M"
}

# is_not_armed WHERE MORE: MORE at the end of the next command line; WHERE, if it names no pool before.
is_not_armed() {
  try "a command line with $2 loads" odd_load "$1" "$2"
  expect 1 "not armed for it" raw_adopt rearm "$NIC" /dev/dax0.0
  says "the hold is not armed"
}

odd_load() {
  if [ -n "$1" ]; then
    MEMMAP=$(memmaps | sed 's/iommu_preserve=[^ ]*//') plain_load "$2"
  else
    plain_load "$2"
  fi
}

step2() { next_kernel 2; }
step3() { next_kernel 3; }
step4() { next_kernel 4; }
step5() { next_kernel 5; }
step6() { next_kernel 6; }

# next_kernel N: passes it on, or ends the story.
next_kernel() {
  scenario "$(parameter vm.scenario)"
  rounds=$(parameter vm.rounds)
  cat /sys/kernel/iommu_preserve/domains 2>/dev/null
  if [ "$1" -le "${rounds:-1}" ]; then
    try "the NIC is bound again" bind "$NIC"
    try "kexec image loads" plain_load
    expect 0 "what is inherited is armed again, nothing adopted" raw_adopt rearm "$NIC" /dev/dax0.0
    leave $(($1 + 1)) kexec -e
  fi
  case $(parameter vm.last) in
    blocked) is_blocked ;;
    lost) is_lost ;;
    found) is_found ;;
    thawed) is_thawed ;;
    quiet) is_quiet ;;
    dumped) is_dumped ;;
    *) is_adopted ;;
  esac
  kernel_is_calm
  done_with "$SCENARIO"
}

is_adopted() {
  [ "$(parameter vm.fill)" = yes ] && fill_memory
  native_is_kept_out "$NIC"
  stub_is_kept_out "$NIC"
  # Where the kernel has runtime power management.
  if [ -e "/sys/bus/pci/devices/$NIC/power/control" ]; then
    try "without a driver it does not idle" does_not_idle "$NIC"
  fi
  if [ "$(parameter vm.how)" = hammer ]; then
    expect 0 "no hold ended during the kexec" raw_adopt hammered /dev/dax0.0
    show_out
  fi
  try "the NIC is bound again" bind "$NIC"
  try "bound, it masters the bus, in D0" is_running "$NIC"
  expect 0 "what must be refused" raw_adopt wrong "$NIC" /dev/dax0.0
  show_out
  try "closed again, it masters the bus, in D0" is_running "$NIC"
  expect 1 "sysfs does not reset it" sh -c "echo 1 >/sys/bus/pci/devices/$NIC/reset"
  says "esource busy"
  if [ "$(parameter vm.resets)" = yes ]; then
    expect 1 "it was never reset" raw_adopt reset "$NIC"
    # Power management comes first, and resets nothing of what QEMU emulates.
    try "when it is reset, then with its bus" sh -c "echo bus >/sys/bus/pci/devices/$NIC/reset_method"
  fi
  if [ "$(parameter vm.killed)" = yes ]; then
    for at in 1 2 3 4 5 6; do
      expect 137 "killed at step $at of adopting" sh -c "raw_adopt die $NIC /dev/dax0.0 $at"
    done
  fi
  bell=$(parameter vm.bell)
  if [ -n "$bell" ]; then
    try "the bell is bound again" bind "$bell"
    try "and a device in no container" bind "$OTHER"
    expect 0 "the bell is taken up" raw_bell adopt "$bell" /dev/dax0.0 "$OTHER"
    show_out
  fi
  expect 0 "adopted" raw_adopt adopt "$NIC" /dev/dax0.0
  show_out
  masters_bus "$NIC" && fail "given up for good it still masters the bus"
  if [ "$(parameter vm.resets)" = yes ]; then expect 0 "and is reset" raw_adopt reset "$NIC"; fi
  try "held no more, pci-stub gets it" stub "$NIC"
  try "the NIC is bound again" bind "$NIC"
  pool_is_empty
  if [ "$(parameter vm.scale)" = yes ]; then
    try "the kernel tells time by function" mount -t tracefs tracing /sys/kernel/tracing
    expect 0 "scale" raw_scale "$NIC" /dev/dax0.0
    show_out
    pool_is_empty
  fi
  [ -z "$(cat /sys/kernel/iommu_preserve/domains)" ] || fail "a domain is left"
}

does_not_idle() {
  echo auto >"/sys/bus/pci/devices/$1/power/control"
  sleep 0.5
  [ "$(cat "/sys/bus/pci/devices/$1/power/runtime_status")" = active ]
}

# is_blocked: the kernel found it, did not like it, and says so.
is_blocked() {
  dmesg | grep -e preserve: -e iommu-preserve: | sed 's/^/    /'
  if grep -q "^refused $NIC.* reason=$(parameter vm.reason)" /sys/kernel/iommu_preserve/domains; then
    say "ok $SCENARIO: the kernel lists the device as refused"
  else
    fail "the device is not listed as refused"
  fi
  grep ^domain /sys/kernel/iommu_preserve/domains && fail "it was taken over"
  try "the NIC is bound again" bind "$NIC"
  # Where the region's reservation is missing there is no memory to begin with.
  if [ -c /dev/dax0.0 ]; then try "it begins anew" raw_adopt fresh "$NIC" /dev/dax0.0; fi
  sleep 2
  echo
}

# is_lost: nothing was found that is this kernel's; what goes on is blocked.
is_lost() {
  expect 0 "the kernel says so" sh -c "dmesg | grep 'all its devices are blocked'"
  [ -z "$(cat /sys/kernel/iommu_preserve/domains)" ] || fail "a domain was taken over"
  try "the NIC is bound again" bind "$NIC"
  try "it begins anew" raw_adopt fresh "$NIC" /dev/dax0.0
  pool_is_empty
  sleep 2
  echo
}

# is_found: taken over, left alone, then given up. Nobody adopts it.
is_found() {
  if grep -q "^device $NIC" /sys/kernel/iommu_preserve/domains; then
    say "ok $SCENARIO: taken over"
  else
    fail "it was not taken over"
  fi
  sleep 6
  root=$(sed -n "s/^device $NIC root=\([^ ]*\) .*/\1/p" /sys/kernel/iommu_preserve/domains)
  expect 0 "the domain is released" sh -c "echo $root >/sys/kernel/iommu_preserve/release"
  expect 1 "once" sh -c "echo $root >/sys/kernel/iommu_preserve/release"
  [ -z "$(cat /sys/kernel/iommu_preserve/domains)" ] || fail "a domain is left"
  try "its own driver gets the device" native "$NIC"
  pool_is_empty
  # Faults that are still being printed would tear the verdict's line.
  sleep 2
  echo
}

# is_thawed: adopted by somebody who never opens the device, and who ends.
is_thawed() {
  try "the NIC is bound again" bind "$NIC"
  expect 0 "thawed and closed, the device never opened" raw_adopt thaw "$NIC" /dev/dax0.0
  show_out
  if masters_bus "$NIC"; then fail "it still masters the bus"; fi
  try "the port above it still does" masters_bus "$(basename "$(dirname "$(readlink -f "/sys/bus/pci/devices/$NIC")")")"
  pool_is_empty
  [ -z "$(cat /sys/kernel/iommu_preserve/domains)" ] || fail "a domain is left"
  echo "$NIC" >/sys/bus/pci/drivers/vfio-pci/unbind
  try "it is switched off" [ "$(cat "/sys/bus/pci/devices/$NIC/enable")" = 0 ]
  sleep 2
}

# native BDF: lets the kernel choose a driver, and has one.
native() {
  echo "$1" >/sys/bus/pci/drivers_probe
  [ "$(basename "$(readlink "/sys/bus/pci/devices/$1/driver")")" = e1000e ]
}

# pool_is_empty: but for the header, root tables, and context tables of buses that the kernel uses.
pool_is_empty() {
  used=$(cat /sys/kernel/iommu_preserve/pool_used)
  if [ "$used" -gt 24576 ]; then fail "the pool is not empty again: $used bytes"; fi
  say "ok $SCENARIO: the pool holds $used bytes"
}

# is_quiet: nothing was left running.
is_quiet() {
  grep "^domain" /sys/kernel/iommu_preserve/domains 2>/dev/null && fail "a domain was taken over"
  say "ok $SCENARIO: nothing was taken over"
  sleep 3
}

fill_memory() {
  mkdir -p /fill
  mount -t tmpfs -o size=90% fill /fill
  # Quickly: the ring does not last for ever.
  left=$(awk '/MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
  dd if=/dev/zero of=/fill/zero bs=1M count=$((left - 120)) 2>/dev/null
  left=$(awk '/MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
  [ "$left" -le 200 ] || fail "memory is not full: $left MiB are left"
  say "ok $SCENARIO: memory is full but for $left MiB"
}
