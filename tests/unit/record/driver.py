"""A driver in another language: VFIO type1 through fcntl and mmap, told what to use on one line."""
import ctypes
import fcntl
import mmap
import os
import struct
import sys

SET_IOMMU, SET_CONTAINER, GET_DEVICE = 0x3B66, 0x3B68, 0x3B6A
MAP, UNMAP = 0x3B71, 0x3B72

number, bdf, path = sys.stdin.readline().split()
container = os.open("/dev/vfio/vfio", os.O_RDWR)
group = os.open("/dev/vfio/" + number, os.O_RDWR)
fcntl.ioctl(group, SET_CONTAINER, struct.pack("i", container))
fcntl.ioctl(container, SET_IOMMU, 3)
device = fcntl.ioctl(group, GET_DEVICE, bytearray(bdf.encode() + b"\0"))
with open(path, "r+b") as file:
    memory = mmap.mmap(file.fileno(), 0x100000)
at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
for iova, size, offset in ((0x100000, 0x2000, 0), (0x200000, 0x1000, 0x5000), (0x300000, 0x1000, 0x9000)):
    fcntl.ioctl(container, MAP, struct.pack("IIQQQ", 32, 3, at + offset, iova, size))
fcntl.ioctl(container, UNMAP, bytearray(struct.pack("IIQQ", 24, 0, 0x300000, 0x1000)))
print("ok", flush=True)
sys.stdin.readline()
for fd in (device, group, container):
    os.close(fd)
print("ok", flush=True)
sys.stdin.readline()
