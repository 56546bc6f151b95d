package patch

import (
	"encoding/json"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

const tagged = `{"metadata":{"name":"p","labels":{"x":"1","y":"2"},"annotations":{"c":"d"}},"spec":{"containers":[{"name":"c"}]},"status":{"phase":"Running"}}`

// FuzzTagged: a patch of labels and annotations gives what the whole patch gives.
func FuzzTagged(f *testing.F) {
	for _, patch := range []string{
		`{"metadata":{"annotations":{"a":"b","c":null}}}`, `{"metadata":{"labels":{"x":null,"y":null,"z":null}}}`, `{"metadata":{"labels":null}}`,
		`{"metadata":{"labels":null,"annotations":{"a":"b"}}}`, `{"metadata":{"labels":{}}}`, `{"metadata":{}}`, `{"metadata":null}`, `{}`,
		`{"metadata":{"labels":{"a":1}}}`, `{"metadata":{"labels":{"$patch":"replace"}}}`, `{"metadata":{"labels":{"a":"b","a":"c"}}}`,
		`{"metadata":{"labels":{"a":"\ud800"}}}`, `{"metadata":{"Labels":{"a":"b"}}}`, `{"metadata":{"labels":{"a":"b"},"name":"q"}}`, `[]`, `null`, `{"kind":"Pod"}`,
	} {
		for _, strategic := range []bool{false, true} {
			f.Add([]byte(patch), []byte(tagged), strategic)
			f.Add([]byte(patch), []byte(`{"metadata":{"name":"p"}}`), strategic)
		}
	}
	f.Fuzz(func(t *testing.T, text, doc []byte, strategic bool) {
		pod := fuzzPod(doc)
		if pod == nil {
			return
		}
		was, _ := json.Marshal(pod)
		got, ok := Tagged(pod, text)
		if now, _ := json.Marshal(pod); string(now) != string(was) {
			t.Fatalf("%s changed its input to %s", text, now)
		}
		if !ok {
			return
		}
		want, ok := patchedBy(strategic, pod, text)
		if !ok {
			t.Fatalf("%s by %s succeeds only as tags", doc, text)
		}
		x, errGot := json.Marshal(got)
		y, errWant := json.Marshal(want)
		if errGot == nil && errWant == nil && string(x) != string(y) {
			t.Fatalf("%s by %s, strategic %v:\nas tags %s\nwhole   %s", doc, text, strategic, x, y)
		}
	})
}

func TestTagged(t *testing.T) {
	pod := fuzzPod([]byte(tagged))
	for text, want := range map[string]bool{
		`{"metadata":{"annotations":{"a":"b","c":null},"labels":{"x":"3"}}}`: true,
		`{"metadata":{"labels":{}}}`:                                         true,
		`{"metadata":{"labels":null}}`:                                       false,
		`{"metadata":{"labels":null,"annotations":{"a":"b"}}}`:               false,
		`{"metadata":{"labels":{"a":1}}}`:                                    false,
		`{"metadata":{"labels":{"$patch":"replace"}}}`:                       false,
		`{"metadata":{"labels":{"a":"b","a":"c"}}}`:                          false,
		`{"metadata":{"labels":{"a":"b"},"resourceVersion":"1"}}`:            false,
		`{"metadata":{"labels":{"a":"b"}},"spec":{}}`:                        false,
		`{"metadata":{}}`: false,
		`null`:            false,
	} {
		if _, ok := Tagged(pod, []byte(text)); ok != want {
			t.Errorf("%s: %v, want %v", text, ok, want)
		}
	}
	obj, _ := Tagged(pod, []byte(`{"metadata":{"annotations":{"a":"b","c":null},"labels":{"x":"3"}}}`))
	got := obj.(*corev1.Pod)
	if len(got.Annotations) != 1 || got.Annotations["a"] != "b" || got.Labels["x"] != "3" || got.Labels["y"] != "2" || len(got.Spec.Containers) != 1 {
		t.Errorf("tagged: %+v", got)
	}
	if &got.Spec.Containers[0] == &pod.Spec.Containers[0] {
		t.Error("the patched object shares memory with the one before")
	}
}
