package volumes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// makeDir makes a directory with exactly this mode, owned by the group when there is
// one. It appears complete or not at all; one that is there is left as it is.
func makeDir(dir string, mode fs.FileMode, group *int64) error {
	if info, err := os.Lstat(dir); err == nil {
		if !info.IsDir() {
			return fmt.Errorf("%s is not a directory", dir)
		}
		return nil
	}
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o750); err != nil {
		return err
	}
	fresh, err := os.MkdirTemp(parent, "..new-")
	if err != nil {
		return err
	}
	if group != nil {
		err = os.Chown(fresh, -1, int(*group))
		mode |= fs.ModeSetgid | 0o770
	}
	if err == nil {
		err = os.Chmod(fresh, mode)
	}
	if err == nil {
		err = os.Rename(fresh, dir)
	}
	if err != nil {
		return errors.Join(err, os.Remove(fresh))
	}
	return nil
}

// makeTmpfs mounts a file system in memory, not to be swapped out where the kernel can
// promise that (6.4). sizeBytes 0 leaves the kernel's limit.
func makeTmpfs(dir string, group *int64, sizeBytes int64) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	if mounted, err := isMounted(dir); err != nil || mounted {
		return err
	}
	options := "mode=1777"
	if group != nil {
		options = fmt.Sprintf("mode=3777,gid=%d", *group)
	}
	if sizeBytes > 0 {
		options += fmt.Sprintf(",size=%d", sizeBytes)
	}
	err := unix.Mount("tmpfs", dir, "tmpfs", 0, options+",noswap")
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("tmpfs", dir, "tmpfs", 0, options)
	}
	if err != nil {
		return fmt.Errorf("mount tmpfs at %s: %w", dir, err)
	}
	return nil
}

func isMounted(path string) (bool, error) {
	mounted, err := mountinfo.Mounted(path)
	if err != nil {
		return false, fmt.Errorf("look for a mount at %s: %w", path, err)
	}
	return mounted, nil
}

// mountsBelow lists the mount points at dir and below, deepest first; one that is
// stacked over another comes before it.
func mountsBelow(dir string) ([]string, error) {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	var points []string
	for _, m := range infos {
		points = append(points, m.Mountpoint)
	}
	sort.SliceStable(points, func(i, j int) bool {
		return strings.Count(points[i], "/") > strings.Count(points[j], "/")
	})
	return points, nil
}

// removeTree unmounts everything at dir and below and then deletes it. It does not
// delete while anything is still mounted there: what a mount shows belongs to others.
func removeTree(ctx context.Context, dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	real, err := filepath.EvalSymlinks(dir) // the mount table knows real paths only
	if err != nil {
		return err
	}
	points, err := mountsBelow(real)
	if err != nil {
		return err
	}
	for _, point := range points {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := unix.Unmount(point, unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	if len(points) > 0 {
		if points, err = mountsBelow(real); err != nil {
			return err
		}
		if len(points) > 0 {
			return fmt.Errorf("%s is still mounted", points[0])
		}
	}
	return os.RemoveAll(real)
}

// Bits that a volume shared with a group has at least. Source: Kubernetes documentation,
// "Configure a Security Context for a Pod", fsGroup.
const (
	shareFile = fs.FileMode(0o660)
	shareDir  = fs.FileMode(0o770) | fs.ModeSetgid
)

// shareTree gives all files to the group. The root comes last, so that sharedWith is
// true only of a finished tree.
func shareTree(dir string, group int64) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if e.IsDir() {
			err = shareTree(path, group)
		} else {
			err = share(path, group, shareFile)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return share(dir, group, shareDir)
}

func share(path string, group int64, bits fs.FileMode) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if err := os.Lchown(path, -1, int(group)); err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return nil
	}
	return os.Chmod(path, info.Mode()|bits)
}

// sharedWith says that the root of a volume looks as shareTree leaves it.
func sharedWith(dir string, group int64) bool {
	info, err := os.Stat(dir)
	if err != nil || !info.IsDir() {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int64(stat.Gid) == group && info.Mode()&shareDir == shareDir
}
