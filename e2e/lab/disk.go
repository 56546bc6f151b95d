package lab

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// The machines' disks are directories of the host's, and the host's is used by others too. A kubelet's usual
// thresholds are parts of the whole disk (evict pods below 10 and 15 % free, remove unused images below 15 %): on
// a large disk that somebody else has filled, the nodes would be tainted with gigabytes to spare, and images that
// no registry has would be gone. Here the thresholds are amounts; that of memory is the usual one.
const (
	evictBytes  = 512 << 20 // below this a node has DiskPressure
	evictInodes = 10_000

	// What New wants to see free: the machines of a usual lab write 0.8 GB each.
	wantBytes  = evictBytes + 2<<30
	wantInodes = evictInodes + 90_000
)

// diskFlags are what `keelson up` is given so that its kubelet goes by these amounts.
func diskFlags() []string {
	hard := []string{"memory.available<100Mi"}
	for _, fs := range []string{"nodefs", "imagefs"} {
		hard = append(hard, fmt.Sprintf("%s.available<%d", fs, evictBytes), fmt.Sprintf("%s.inodesFree<%d", fs, evictInodes))
	}
	return []string{"--extra", "kubelet:eviction-hard=" + strings.Join(hard, ","), "--extra", "kubelet:image-gc-high-threshold=100"}
}

// room says whether a disk with so much left is fit for a lab. inodes is negative for a file system that does not
// count them.
func room(dir string, bytes, inodes int64) error {
	switch {
	case bytes < wantBytes:
		return fmt.Errorf("%s has %d MiB free, and a lab needs %d: its kubelets evict pods below %d. Free some, or give the lab another directory", dir, bytes>>20, wantBytes>>20, evictBytes>>20)
	case inodes >= 0 && inodes < wantInodes:
		return fmt.Errorf("%s has %d inodes free, and a lab needs %d: its kubelets evict pods below %d", dir, inodes, wantInodes, evictInodes)
	}
	return nil
}

// checkDisk looks at the disk of a directory that exists.
func checkDisk(dir string) error {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return fmt.Errorf("look at the disk of %s: %w", dir, err)
	}
	inodes := int64(s.Ffree)
	if s.Files == 0 {
		inodes = -1
	}
	return room(dir, int64(s.Bavail)*s.Bsize, inodes)
}
