# shellcheck shell=dash
# The words in which the chains (tests/vm/chains/*.sh) are written; sourced by the guest's init.
#
# A scenario's verdict is one line on the console, printed by the guest when every check up to the
# scenario's end held:  HOLDFAST-VM: PASS name   or   HOLDFAST-VM: FAIL name: what did not hold
#
# /state is carried from kernel to kernel on a small disk of its own (/dev/vdb), so that a scenario
# may begin before the kexec and end after it. It holds the harness's notes only; what Holdfast
# needs travels in reserved memory.

# The devices under test. The e1000e sits behind a root port so that a reset can reach it.
EDU=0000:00:10.0
E1000E=0000:01:00.0
export EDU E1000E
# Where a chain on the patched kernel has its NIC.
NIC=
export NIC

say() { echo "HOLDFAST-VM: $*"; }

# drain: what was said has left the serial port; a machine that ends at once would swallow it.
drain() { sleep 0.3; }

# parameter NAME: the value of NAME= on the running kernel's command line.
parameter() {
  tr ' ' '\n' </proc/cmdline | sed -n "s/^$1=//p" | tail -n 1
}

state_load() {
  mkdir -p /state
  [ -b /dev/vdb ] && tar xf /dev/vdb -C /state 2>/dev/null
  return 0
}

state_save() {
  (cd /state && tar cf /tmp/state.tar .)
  dd if=/tmp/state.tar of=/dev/vdb bs=64k conv=fsync,notrunc 2>/dev/null || say "note state not saved"
}

# uptime in hundredths of a second, to see what takes long
ticks() { sed 's/\([0-9]*\)\.\([0-9]*\) .*/\1\2/' /proc/uptime; }

vm_boot() {
  state_load
  CHAIN=$(parameter vm.chain)
  NIC=$(parameter vm.nic)
  # Not from the command line: a scenario may re-use that, or reset the machine.
  STEP=$(cat /state/step 2>/dev/null || echo 1)
  BOOT_ID=$(cat /proc/sys/kernel/random/boot_id)
  say "boot chain=$CHAIN step=$STEP boot_id=$BOOT_ID kernel=$(uname -r)"
  say "text $(sed -n 's/ T _text$//p' /proc/kallsyms)" # where KASLR put this kernel
  if grep -q "$BOOT_ID" /state/boots 2>/dev/null; then
    say "FAIL $CHAIN: this is not a new kernel"
    vm_end
  fi
  echo "$BOOT_ID" >>/state/boots
  # shellcheck source=/dev/null
  . "/vm/chains/$(parameter vm.script).sh"
  "step$STEP"
  vm_end
}

# splats: what the kernel's log should not have, onto the console, where the host looks for it.
splats() {
  dmesg | grep -E -A 30 -f /vm/splats | sed 's/^/    /'
}

# Ends the machine; the host accepts no other exit.
vm_end() {
  splats
  state_save
  say end
  drain
  vmexit 2
  poweroff -f
}

# -- scenarios ----------------------------------------------------------------------------------

# scenario NAME: opens (or, after a kexec, reopens) a scenario.
scenario() {
  SCENARIO=$1
  say "BEGIN $1"
}

# fail WHAT: the open scenario has failed; its first reason counts.
fail() {
  say "not ok $SCENARIO: $*"
  [ -e "/state/failed.$SCENARIO" ] || echo "$*" >"/state/failed.$SCENARIO"
}

# done_with NAME: the verdict.
done_with() {
  if [ -e "/state/failed.$1" ]; then
    say "FAIL $1: $(cat "/state/failed.$1")"
  else
    say "PASS $1"
  fi
}

# try WHAT COMMAND...: the command must succeed. Its output goes to the console when it does not.
try() {
  try_what=$1
  shift
  if "$@" >/tmp/try.out 2>&1; then
    say "ok $SCENARIO: $try_what"
  else
    try_status=$?
    sed 's/^/    /' /tmp/try.out
    fail "$try_what (exit $try_status: $*)"
    return 1
  fi
}

# expect STATUS WHAT COMMAND...: the command must end with exactly this status. Output in $OUT.
OUT=/tmp/expect.out
expect() {
  expect_status=$1
  expect_what=$2
  shift 2
  expect_got=0
  "$@" >$OUT 2>&1 || expect_got=$?
  if [ "$expect_got" = "$expect_status" ]; then
    say "ok $SCENARIO: $expect_what (exit $expect_got)"
    [ "$expect_status" = 0 ] || head -n 4 $OUT | sed 's/^/    /'
  else
    sed 's/^/    /' $OUT
    fail "$expect_what: exit $expect_got instead of $expect_status ($*)"
    return 1
  fi
}

# show_out: the output of the last expect, for whoever reads the serial log.
show_out() { sed 's/^/    /' $OUT; }

# says TEXT...: the output of the last expect contains each of these.
says() {
  for says_text; do
    if ! grep -qF -e "$says_text" $OUT; then
      sed 's/^/    /' $OUT
      fail "no \"$says_text\" in the output of: $expect_what"
      return 1
    fi
  done
}

# never_says TEXT: the output of the last expect does not contain it.
never_says() {
  if grep -qF -e "$1" $OUT; then
    sed 's/^/    /' $OUT
    fail "\"$1\" in the output of: $expect_what"
    return 1
  fi
}

# wait_for SECONDS WHAT COMMAND...: until the command succeeds.
wait_for() {
  wait_left=$(($1 * 10))
  wait_what=$2
  shift 2
  while ! "$@" >/dev/null 2>&1; do
    wait_left=$((wait_left - 1))
    if [ $wait_left -le 0 ]; then
      fail "waited in vain for $wait_what ($*)"
      return 1
    fi
    sleep 0.1
  done
}

# -- machine ------------------------------------------------------------------------------------

# bind BDF: gives the function to vfio-pci.
bind() {
  echo vfio-pci >"/sys/bus/pci/devices/$1/driver_override"
  [ -e "/sys/bus/pci/devices/$1/driver" ] &&
    echo "$1" >"/sys/bus/pci/devices/$1/driver/unbind"
  echo "$1" >/sys/bus/pci/drivers_probe
  [ "$(basename "$(readlink "/sys/bus/pci/devices/$1/driver")")" = vfio-pci ]
}

# bind_e1000e: binds it with the secondary bus reset as its reset method. The kernel's first choice,
# power management, is carried out by QEMU 7.2 without resetting anything.
bind_e1000e() {
  echo bus >"/sys/bus/pci/devices/$E1000E/reset_method" && bind "$E1000E"
}

# device_is_untouched BDF: nobody has opened it since this kernel started. Opening a function through
# vfio-pci switches it on; until then its enable count is 0 and it masters no bus.
device_is_untouched() {
  [ "$(cat "/sys/bus/pci/devices/$1/enable")" = 0 ] || return 1
  for open_file in /proc/[0-9]*/fd/*; do
    case $(readlink "$open_file") in
      *vfio-device* | /dev/vfio/[0-9]*) return 1 ;;
    esac
  done
}

# devdax N: makes namespaceN.0 a devdax device, /dev/daxN.0; later kernels find it again themselves.
devdax() {
  ndctl create-namespace -f -e "namespace$1.0" --mode=devdax --map=mem --align=2M >/tmp/ndctl.out 2>&1 ||
    { cat /tmp/ndctl.out; return 1; }
  [ -c "/dev/dax$1.0" ]
}

# boot_files: the kernel and initrd for the next kexec, from the read-only disk.
boot_files() {
  [ -e /boot/vmlinuz ] && return
  mkdir -p /boot
  tar xf /dev/vda -C /boot
}

# next_cmdline [PARAMETER...]: what the next kernel's command line starts from. The memory
# reservations are those of this boot, unless MEMMAP names others; holdfast kexec load carries them
# over by itself.
next_cmdline() { echo "$(common_cmdline) ${MEMMAP:-$(memmaps)} $*"; }
common_cmdline() { echo "console=ttyS0 panic=-1 quiet loglevel=4 no_timer_check intel_iommu=on $(vm_options)"; }
vm_options() { tr ' ' '\n' </proc/cmdline | grep -e '^vm\.' -e '^vfio_iommu_type1\.' | tr '\n' ' '; }
memmaps() { tr ' ' '\n' </proc/cmdline | grep -e '^memmap=' -e '^iommu_preserve=' | tr '\n' ' '; }

# plain_load [PARAMETER...]: loads the next kernel with kexec-tools alone, past Holdfast.
plain_load() {
  boot_files
  kexec -s -l /boot/vmlinuz --initrd=/boot/initrd "--command-line=$(next_cmdline "$@")"
}

# leave NEXT_STEP COMMAND...: the last thing a kernel does; the command must end it. The next kernel
# goes on with stepNEXT_STEP.
leave() {
  leave_step=$1
  shift
  echo "$leave_step" >/state/step
  [ "$(cat /sys/kernel/kexec_loaded)" = 1 ] || say "note no kernel is loaded"
  state_save
  splats
  say "leaving for step $leave_step"
  drain
  # From here on nobody can ask for it any more.
  dmesg -n 5
  "$@"
  leave_status=$?
  sleep 5 # systemctl-like commands return before the kernel ends
  fail "this kernel is still running after: $* (exit $leave_status)"
  done_with "$SCENARIO"
  vm_end
}

# -- the patched kernel -----------------------------------------------------------------------------

# native_is_kept_out BDF: the device's own driver did not get it while it is held.
native_is_kept_out() {
  if [ -e "/sys/bus/pci/devices/$1/driver" ]; then
    fail "a native driver has $1"
  else
    say "ok $SCENARIO: no driver has $1"
  fi
}

# stub_is_kept_out BDF: a driver that takes anything and never asks for the device's DMA does not get it
# while it is held, nor does its own, and the kernel says so.
stub_is_kept_out() {
  echo pci-stub >"/sys/bus/pci/devices/$1/driver_override"
  expect 1 "pci-stub does not get it" sh -c "echo $1 >/sys/bus/pci/drivers/pci-stub/bind"
  says "Device or resource busy"
  echo >"/sys/bus/pci/devices/$1/driver_override"
  expect 1 "nor does e1000e" sh -c "echo $1 >/sys/bus/pci/drivers/e1000e/bind"
  says "Device or resource busy"
  native_is_kept_out "$1"
  expect 0 "the kernel's log" sh -c "dmesg | grep 'is held with its IOMMU domain'"
  says "$1: is held with its IOMMU domain, pci-stub does not get it" \
    "$1: is held with its IOMMU domain, e1000e does not get it"
}

# stub BDF: gives it to that driver, which takes what is not held.
stub() {
  echo pci-stub >"/sys/bus/pci/devices/$1/driver_override"
  echo "$1" >"/sys/bus/pci/devices/$1/driver/unbind"
  echo "$1" >/sys/bus/pci/drivers/pci-stub/bind
}

# masters_bus BDF: whether bit 2 of its command register is set.
masters_bus() { [ $(($(od -An -tu1 -j4 -N1 "/sys/bus/pci/devices/$1/config") & 4)) != 0 ]; }

# is_running BDF: as a held device is left, with nobody's descriptor open on it.
is_running() { masters_bus "$1" && [ "$(cat "/sys/bus/pci/devices/$1/power_state")" = D0 ]; }

# kernel_is_calm: no warning, splat or unhandled interrupt in the kernel's log so far.
kernel_is_calm() {
  if dmesg | grep -E -q -f /vm/splats; then
    fail "the kernel's log is not calm"
  else
    say "ok $SCENARIO: the kernel's log is calm"
  fi
}

# -- Holdfast -----------------------------------------------------------------------------------

# The hooks as an installed system runs them, with the policy that this kernel can keep.
pre_kexec() { /usr/libexec/holdfast/pre-kexec --policy adopt-or-remap; }
post_boot() { /usr/libexec/holdfast/post-boot --policy adopt-or-remap; }

# configure ARENA: what an installed host would have in /etc.
configure() {
  mkdir -p /etc/holdfast /run/holdfast
  printf 'arena = %s\nhold = 600\n' "$1" >/etc/holdfast/holdfast.conf
}

# agent_start: holdfastd (AGENT: with what before it), until it answers.
agent_start() {
  rm -f /run/holdfast/agent.sock # of one that was killed: it would look like an answer
  # shellcheck disable=SC2086 # words
  ${AGENT:-holdfastd} >>/run/holdfastd.log 2>&1 &
  AGENT_PID=$!
  wait_for 20 "holdfastd to answer" test -S /run/holdfast/agent.sock || {
    cat /run/holdfastd.log
    return 1
  }
}

# agent_end SIGNAL: ends holdfastd and waits until it is gone.
agent_end() {
  kill "-$1" "$AGENT_PID"
  wait "$AGENT_PID" 2>/dev/null
  return 0
}

# driver_start NAME PROGRAM ARGUMENT...: a driver in the background; it obeys lines written to its
# standard input, see driver_ask, and says "NAME: ready" first.
driver_start() {
  driver=$1
  shift
  mkfifo "/run/$driver.in"
  "$@" <"/run/$driver.in" >"/run/$driver.out" 2>&1 &
  echo $! >"/run/$driver.pid"
  # Kept open for writing by a process of its own, or the driver sees the end of its input.
  sleep 100000 >"/run/$driver.in" &
  echo $! >"/run/$driver.holder"
  wait_for 30 "driver $driver" grep -q "^ready" "/run/$driver.out" || {
    sed 's/^/    /' "/run/$driver.out"
    return 1
  }
  say "ok $SCENARIO: driver $driver: $(grep '^ready' "/run/$driver.out")"
}

# driver_ask NAME COMMAND...: sends one command and leaves the answer in $ANSWER: "ok ..." or
# "no ...". Succeeds on ok.
driver_ask() {
  driver=$1
  shift
  driver_serial=$((${driver_serial:-0} + 1))
  echo "$driver_serial $*" >"/run/$driver.in"
  wait_for 20 "an answer of driver $driver to $*" grep -q "^$driver_serial " "/run/$driver.out" || {
    tail -n 5 "/run/$driver.out" | sed 's/^/    /'
    return 1
  }
  ANSWER=$(sed -n "s/^$driver_serial //p" "/run/$driver.out")
  case $ANSWER in
    ok*) return 0 ;;
    *) return 1 ;;
  esac
}

# answer_field NAME: a number out of $ANSWER.
answer_field() { echo "$ANSWER" | tr ' ' '\n' | sed -n "s/^$1=//p"; }

# dma_goes_on NAME WHAT: the driver's device completes checked transfers now, and none went wrong.
dma_goes_on() {
  driver_ask "$1" status || { fail "$2: $ANSWER"; return 1; }
  dma_before=$(answer_field transfers)
  dma_tries=50
  while [ $dma_tries -gt 0 ]; do
    sleep 0.2
    driver_ask "$1" status || { fail "$2: $ANSWER"; return 1; }
    [ "$(answer_field transfers)" -gt $((dma_before + 1)) ] && break
    dma_tries=$((dma_tries - 1))
  done
  if [ $dma_tries = 0 ]; then fail "$2: no transfer within 10 s ($ANSWER)"; return 1; fi
  if [ "$(answer_field wrong)" != 0 ]; then fail "$2: $ANSWER"; return 1; fi
  say "ok $SCENARIO: $2 ($ANSWER)"
}

# driver_ok NAME WHAT COMMAND...: asks, and the answer must be ok.
driver_ok() {
  ok_driver=$1
  ok_what=$2
  shift 2
  if driver_ask "$ok_driver" "$@"; then
    say "ok $SCENARIO: $ok_what ($ANSWER)"
  else
    fail "$ok_what: $ANSWER"
    return 1
  fi
}

# driver_no NAME WHAT TEXT COMMAND...: asks, and the answer must be "no" with this text.
driver_no() {
  no_driver=$1
  no_what=$2
  no_text=$3
  shift 3
  driver_ask "$no_driver" "$@" && { fail "$no_what: $ANSWER"; return 1; }
  case $ANSWER in
    *"$no_text"*) say "ok $SCENARIO: $no_what ($ANSWER)" ;;
    *) fail "$no_what: $ANSWER instead of $no_text" ;;
  esac
}

# arms: the next kernel loaded by Holdfast, under a fresh nonce.
arm() {
  boot_files
  try "kexec load arms the arena" holdfast kexec load /boot/vmlinuz --initrd /boot/initrd \
    --append "$(common_cmdline) $*"
}

# arena_is STATE: what `show --state` says.
arena_is() {
  arena_state=$(holdfast show --state 2>&1)
  if [ "$arena_state" = "$1" ]; then
    say "ok $SCENARIO: the arena is $1"
  else
    fail "the arena is $arena_state, not $1"
    return 1
  fi
}

# view_is_whole: under /mnt/current every file is what the checksums say, by a tool not ours.
view_is_whole() {
  if (cd /mnt/current && xxhsum -q -c checksums) >/tmp/xxhsum.out 2>&1; then
    say "ok $SCENARIO: xxhsum -c checksums ($(wc -l </mnt/current/checksums) files)"
  else
    sed 's/^/    /' /tmp/xxhsum.out
    fail "xxhsum -c checksums"
    return 1
  fi
}

# show_log: holdfastd's own words, for whoever reads the serial log.
show_log() { sed 's/^/    holdfastd: /' /run/holdfastd.log; }
