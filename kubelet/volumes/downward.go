package volumes

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sort"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
)

var downwardAPI = Type{
	Plugin: "kubernetes.io~downward-api",
	Match:  func(q *request) bool { return q.volume.DownwardAPI != nil },
	Content: func(ctx context.Context, q *request) (payload, time.Time, error) {
		s := q.volume.DownwardAPI
		p, err := q.downwardFiles(s.Items, mode(s.DefaultMode))
		return p, time.Time{}, err
	},
}

func (q *request) downwardFiles(items []corev1.DownwardAPIVolumeFile, defaultMode int32) (payload, error) {
	p := payload{}
	var faults []error
	for _, item := range items {
		f := file{mode: defaultMode}
		if item.Mode != nil {
			f.mode = *item.Mode
		}
		var text string
		var err error
		switch {
		case item.FieldRef != nil:
			text, err = podField(q.pod, item.FieldRef.FieldPath)
		case item.ResourceFieldRef != nil:
			text, err = containerResource(q.pod, item.ResourceFieldRef, q.manager.allocatable())
		}
		if err != nil {
			faults = append(faults, err)
			continue
		}
		f.data = []byte(text)
		p[item.Path] = f
	}
	return p, utilerrors.NewAggregate(faults)
}

// podField is the value of one of the fields that a file may hold. Source: Kubernetes
// documentation, "Downward API", fields available as files.
func podField(pod *corev1.Pod, path string) (string, error) {
	if name, rest, ok := strings.Cut(path, "['"); ok && strings.HasSuffix(rest, "']") {
		key := strings.TrimSuffix(rest, "']")
		switch name {
		case "metadata.annotations":
			return pod.Annotations[key], nil
		case "metadata.labels":
			return pod.Labels[key], nil
		}
		return "", fmt.Errorf("fieldPath %q does not support subscript", path)
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "metadata.labels":
		return lines(pod.Labels), nil
	case "metadata.annotations":
		return lines(pod.Annotations), nil
	}
	return "", fmt.Errorf("unsupported fieldPath: %v", path)
}

// lines is key="value", sorted by key, one on a line, values quoted as in Go.
func lines(m map[string]string) string {
	out := make([]string, 0, len(m))
	for k, v := range m {
		out = append(out, k+"="+strconv.Quote(v))
	}
	sort.Slice(out, func(i, j int) bool {
		a, _, _ := strings.Cut(out[i], "=")
		b, _, _ := strings.Cut(out[j], "=")
		return a < b
	})
	return strings.Join(out, "\n")
}

// containerResource is a request or limit in units of the divisor, rounded up. A limit
// that is not set is all that the node offers.
func containerResource(pod *corev1.Pod, f *corev1.ResourceFieldSelector, allocatable corev1.ResourceList) (string, error) {
	var c *corev1.Container
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if c == nil && list[i].Name == f.ContainerName {
				c = &list[i]
			}
		}
	}
	if c == nil {
		return "", fmt.Errorf("container %s not found", f.ContainerName)
	}
	list, name, ok := strings.Cut(f.Resource, ".")
	resourceName := corev1.ResourceName(name)
	known := resourceName == corev1.ResourceCPU || resourceName == corev1.ResourceMemory ||
		resourceName == corev1.ResourceEphemeralStorage || strings.HasPrefix(name, corev1.ResourceHugePagesPrefix)
	if !ok || !known {
		return "", fmt.Errorf("unsupported container resource : %v", f.Resource)
	}
	var value resource.Quantity
	switch list {
	case "requests":
		value = c.Resources.Requests[resourceName]
	case "limits":
		value = c.Resources.Limits[resourceName]
		if offered, ok := allocatable[resourceName]; ok && value.IsZero() {
			value = offered
		}
	default:
		return "", fmt.Errorf("unsupported container resource : %v", f.Resource)
	}
	divisor := f.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if resourceName == corev1.ResourceCPU {
		return ratio(value.MilliValue(), divisor.MilliValue())
	}
	return ratio(value.Value(), divisor.Value())
}

func ratio(value, divisor int64) (string, error) {
	if divisor == 0 {
		return "", errors.New("divisor is too small")
	}
	return strconv.FormatInt(int64(math.Ceil(float64(value)/float64(divisor))), 10), nil
}
