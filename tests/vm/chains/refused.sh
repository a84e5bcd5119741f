# shellcheck shell=dash
# Devices that cannot be preserved, each refused at opt-in with its reason in the kernel's log and in
# doctor's; a plain container with the same device works. And a user who is not root.
#
#   vm.only=   scalable: the IOMMU is in scalable mode, nothing can be preserved; virtual_function

HOTPLUG=0000:01:00.0 # below a port with hotplug, 00:11.0
ATS=0000:02:00.0     # below one without
MEMBER=0000:00:12.0  # two functions, one group
OTHER_MEMBER=0000:00:12.1
PHYSICAL=0000:00:14.0
VIRTUAL=0000:00:14.1

step1() {
  case $(parameter vm.only) in
    '') for what in hotplug ats group not_root; do $what; done ;;
    *) "$(parameter vm.only)" ;;
  esac
}

# refused BDF WHY DOCTOR [PF]: not preserved, and everybody is told why.
refused() {
  expect 0 "refused, and a plain container works" raw_refused optin "$1" EOPNOTSUPP ${4:+"$4"}
  show_out
  expect 0 "the kernel's log" sh -c "dmesg | grep 'cannot be preserved'"
  says "$1: cannot be preserved: $2"
  doctor_says "$1 $3"
}

doctor_says() {
  expect 0 "doctor" sh -c "holdfast doctor; true"
  says "$1" && say "ok $SCENARIO: doctor: $(grep -oF -e "$1" "$OUT" | head -n 1)"
}

# ends: what every one of these scenarios ends with.
ends() {
  [ -z "$(cat /sys/kernel/iommu_preserve/domains)" ] || fail "a domain is left"
  kernel_is_calm
  done_with "$SCENARIO"
}

hotplug() {
  scenario refused-hotplug
  try "a NIC below a hotplug port is bound" bind $HOTPLUG
  refused $HOTPLUG "it is behind a hotplug bridge" "sits below hotplug bridge 0000:00:11.0"
  ends
}

ats() {
  scenario refused-ats
  try "a virtio NIC with ATS is bound" bind $ATS
  refused $ATS "it has ATS" "has ATS"
  ends
}

virtual_function() {
  scenario refused-vf
  try "an SR-IOV controller is bound" bind $PHYSICAL
  echo Y >/sys/module/vfio_pci/parameters/enable_sriov
  try "it gets a virtual function" sh -c "echo 1 >/sys/bus/pci/devices/$PHYSICAL/sriov_numvfs"
  try "which is bound" bind $VIRTUAL
  refused $VIRTUAL "it is an SR-IOV virtual function" "is an SR-IOV VF" $PHYSICAL
  try "no virtual function any more" sh -c "echo 0 >/sys/bus/pci/devices/$PHYSICAL/sriov_numvfs"
  ends
}

# One group, one member with its native driver: nobody gets the group, and doctor says who is in the
# way. Both with user space, they go together, or with the other one idle.
group() {
  scenario refused-group
  try "two functions share a group" [ "$(readlink -f /sys/bus/pci/devices/$MEMBER/iommu_group)" = \
    "$(readlink -f /sys/bus/pci/devices/$OTHER_MEMBER/iommu_group)" ]
  try "one is bound" bind $MEMBER
  try "the other has its native driver" [ "$(driver_of $OTHER_MEMBER)" = virtio-pci ]
  expect 0 "refused" raw_refused member $MEMBER EPERM
  show_out
  doctor_says "$MEMBER shares its group with $OTHER_MEMBER, which virtio-pci has"
  echo $OTHER_MEMBER >/sys/bus/pci/devices/$OTHER_MEMBER/driver/unbind
  expect 0 "with no driver on the other it may" raw_refused member $MEMBER none
  show_out
  ends
}

driver_of() { basename "$(readlink "/sys/bus/pci/devices/$1/driver")"; }

not_root() {
  scenario refused-not-root
  try "devdax from memmap=" devdax 0
  try "the NIC is bound" bind "$NIC"
  expect 0 "an ordinary user may not hold, thaw or take up, nor read" raw_refused user "$NIC" /dev/dax0.0
  show_out
  masters_bus "$NIC" && fail "given up for good it still masters the bus"
  ends
}

scalable() {
  scenario refused-scalable
  try "the NIC is bound" bind "$NIC"
  expect 0 "the kernel's log" sh -c "dmesg | grep -i -e preserve -e scalable"
  show_out
  says "is in scalable mode, nothing can be preserved"
  expect 0 "refused, and a plain container works" raw_refused optin "$NIC" ENODEV
  show_out
  doctor_says "not every active IOMMU is a VT-d unit in legacy mode"
  ends
}
