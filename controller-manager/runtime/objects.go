package runtime

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/keelson/keelson/libs/informer"
)

// Objects is a set of objects read from a file: what the plan command decides on.
type Objects []metav1.Object

// ReadObjects reads YAML or JSON documents; lists are taken apart.
func ReadObjects(r io.Reader) (Objects, error) {
	var all Objects
	docs := yaml.NewYAMLOrJSONDecoder(r, 4096)
	for n := 1; ; n++ {
		var raw kruntime.RawExtension
		if err := docs.Decode(&raw); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		if len(bytes.TrimSpace(raw.Raw)) == 0 || bytes.Equal(raw.Raw, []byte("null")) {
			continue
		}
		if err := all.add(raw.Raw); err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
	}
}

func (all *Objects) add(raw []byte) error {
	o, _, err := scheme.Codecs.UniversalDeserializer().Decode(raw, nil, nil)
	if err != nil {
		return err
	}
	if list, ok := o.(*corev1.List); ok {
		for i, item := range list.Items {
			if err := all.add(item.Raw); err != nil {
				return fmt.Errorf("item %d: %w", i, err)
			}
		}
		return nil
	}
	m, ok := o.(metav1.Object)
	if !ok {
		return fmt.Errorf("%T has no metadata", o)
	}
	if m.GetUID() == "" {
		m.SetUID(types.UID(m.GetNamespace() + "/" + m.GetName()))
	}
	*all = append(*all, m)
	return nil
}

// Pick returns the objects of type T, by name.
func Pick[T informer.Object](all Objects) []T {
	var some []T
	for _, o := range all {
		if t, ok := o.(T); ok {
			some = append(some, t)
		}
	}
	slices.SortStableFunc(some, func(a, b T) int {
		return compareKeys(KeyOf(a), KeyOf(b))
	})
	return some
}

// OwnedBy returns the objects of type T whose controlling owner is uid.
func OwnedBy[T informer.Object](all Objects, uid types.UID) []T {
	return slices.DeleteFunc(Pick[T](all), func(o T) bool {
		ref := metav1.GetControllerOfNoCopy(o)
		return ref == nil || ref.UID != uid
	})
}

func compareKeys(a, b types.NamespacedName) int {
	return bytes.Compare([]byte(a.String()), []byte(b.String()))
}
