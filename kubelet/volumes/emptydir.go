package volumes

import (
	"context"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

var emptyDir = Type{
	Plugin: "kubernetes.io~empty-dir",
	Match:  func(q *request) bool { return q.volume.EmptyDir != nil },
	Update: func(_ context.Context, q *request) (Mounted, error) {
		s := q.volume.EmptyDir
		var err error
		switch {
		case s.Medium == corev1.StorageMediumDefault:
			err = makeDir(q.dir, 0o777, q.fsGroup())
		case s.Medium == corev1.StorageMediumMemory:
			err = makeTmpfs(q.dir, q.fsGroup(), memoryBytes(q.pod, s))
		case strings.HasPrefix(string(s.Medium), string(corev1.StorageMediumHugePages)):
			err = makeHugePages(q)
		default:
			err = fmt.Errorf("unknown storage medium %q", s.Medium)
		}
		return Mounted{HostPath: q.dir}, err
	},
}

// memoryBytes is the size of an emptyDir in memory: the limit it asks for, and no more
// than all containers of the pod may use together; 0 is the kernel's default, half of
// the machine. Source: KEP-1967.
func memoryBytes(pod *corev1.Pod, s *corev1.EmptyDirVolumeSource) int64 {
	total, bounded := int64(0), len(pod.Spec.Containers) > 0
	for _, c := range pod.Spec.Containers {
		limit, ok := c.Resources.Limits[corev1.ResourceMemory]
		bounded = bounded && ok && !limit.IsZero()
		total += limit.Value()
	}
	if !bounded {
		total = 0
	}
	if s.SizeLimit != nil && s.SizeLimit.Value() > 0 && (total == 0 || s.SizeLimit.Value() < total) {
		total = s.SizeLimit.Value()
	}
	return total
}

func makeHugePages(q *request) error {
	size := strings.TrimPrefix(strings.TrimPrefix(string(q.volume.EmptyDir.Medium), string(corev1.StorageMediumHugePages)), "-")
	if size == "" {
		for _, c := range append(append([]corev1.Container(nil), q.pod.Spec.InitContainers...), q.pod.Spec.Containers...) {
			for name := range c.Resources.Requests {
				found, ok := strings.CutPrefix(string(name), corev1.ResourceHugePagesPrefix)
				if ok && size != "" && size != found {
					return fmt.Errorf("medium: %s can't be used if container requests multiple huge page sizes", q.volume.EmptyDir.Medium)
				}
				if ok {
					size = found
				}
			}
		}
	}
	if size == "" {
		return fmt.Errorf("medium %s: hugePages storage requested, but there is no resource request for huge pages", q.volume.EmptyDir.Medium)
	}
	if err := os.MkdirAll(q.dir, 0o777); err != nil {
		return err
	}
	if mounted, err := isMounted(q.dir); err != nil || mounted {
		return err
	}
	options := "mode=1777,pagesize=" + strings.TrimSuffix(size, "i")
	if g := q.fsGroup(); g != nil {
		options += fmt.Sprintf(",gid=%d", *g)
	}
	if err := unix.Mount("nodev", q.dir, "hugetlbfs", 0, options); err != nil {
		return fmt.Errorf("mount hugetlbfs: %w", err)
	}
	return nil
}
