# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034 # variables of `run` and for it
# One emulated machine, its serial log and its verdict. Sourced by `run`.

# The guest ends with outl(34, 0xf4), which QEMU turns into 2*34+1. Anything else is a failure: 0 is
# a kernel panic under -no-reboot, 134 an abort of QEMU, 124 the time limit.
VM_GOOD_EXIT=69

# stamp: every line of standard input with the host's time in front.
stamp() {
  local line now
  while IFS= read -r line || [ -n "$line" ]; do
    now=$EPOCHREALTIME
    line=${line//$'\r'/}
    printf '%(%H:%M:%S)T.%.3s %s\n' "${now%.*}" "${now#*.}" "$line"
  done
}

# The vCPUs take turns in one thread. In threads of their own QEMU 7.2 crashes now and then, or loses a write to
# a device: it looks up the place of a write in a map that another vCPU's write is just replacing. A chain that
# needs vCPUs to run at the same time sets this to multi.
VM_THREADS=single

# run_machine LOG LIMIT CMDLINE [QEMU ARGUMENT...]: boots the cached kernel once and appends its
# serial console to LOG. Returns 0 only if the guest ended the machine itself, in time.
run_machine() {
  local log=$1 limit=$2 cmdline=$3 status watch monitor
  shift 3
  monitor=$(mktemp -u /tmp/holdfast-vm.XXXXXX)
  {
    "$here/lib/machine_state" "$monitor" $((limit - 5)) 2>&1 &
    watch=$!
    timeout --kill-after=5 "$limit" qemu-system-x86_64 \
      -accel "tcg,thread=$VM_THREADS" -M q35 -cpu "${HOLDFAST_VM_CPU:-max}" -smp "${VM_CPUS:-2}" -m "$MACHINE_RAM" \
      -nodefaults -display none -serial stdio \
      -monitor "unix:$monitor,server=on,wait=off" \
      -device isa-debug-exit,iobase=0xf4,iosize=0x04 \
      -device "${VM_IOMMU:-intel-iommu,intremap=on,caching-mode=on}" \
      -kernel "${VM_FIRST_KERNEL:-$VM_KERNEL}" -initrd "$VM_INITRD" \
      -append "console=ttyS0 panic=-1 quiet loglevel=4 no_timer_check intel_iommu=on $cmdline" "$@" </dev/null
    status=$?
    kill $watch 2>/dev/null || true
    wait $watch || true
    rm -f "$monitor"
    [ $status = 124 ] && echo "vm: time limit of $limit s reached"
    echo "vm: qemu exit status $status"
  } 2>&1 | stamp >>"$log"
  # A panic is a failure, unless the guest said that it would crash on purpose.
  [ "$(grep -c 'Kernel panic' "$log")" = "$(grep -c 'HOLDFAST-VM: crash on purpose' "$log")" ] || return 1
  tail -n 1 "$log" | grep -q "qemu exit status $VM_GOOD_EXIT\$"
}
