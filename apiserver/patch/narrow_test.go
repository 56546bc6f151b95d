package patch

import (
	"encoding/json"
	"testing"

	corev1 "k8s.io/api/core/v1"
	kjson "sigs.k8s.io/json"

	"github.com/keelson/keelson/apiserver/resources"
)

// patchedBy carries out a patch and decodes the result; ok is false when that has a fault or needs a warning.
func patchedBy(strategic bool, pod resources.Object, text []byte) (*corev1.Pod, bool) {
	into := &corev1.Pod{}
	if strategic {
		_, strict, err := Strategic(pod, into, text)
		return into, err == nil && len(strict) == 0
	}
	doc, err := json.Marshal(pod)
	if err != nil {
		return nil, false
	}
	doc, strict, err := Merge(doc, text)
	if err != nil || len(strict) > 0 {
		return nil, false
	}
	strict, err = kjson.UnmarshalStrict(doc, into)
	return into, err == nil && len(strict) == 0
}

// FuzzNarrow: a patch of the fields that it names gives what it gives of the whole object.
func FuzzNarrow(f *testing.F) {
	for _, patch := range []string{
		`{"metadata":{"annotations":{"a":"b","c":null}}}`, `{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`,
		`{"metadata":{"managedFields":[]}}`, `{"metadata":null}`, `{"metadata":{"$patch":"replace","name":"p"}}`, `{"metadata":{"labels":null},"spec":{"nodeName":"n"}}`,
		`{"spec":null}`, `{"spec":{"containers":[{"name":"c","image":"x"}]},"metadata":{"labels":{"x":"y"}}}`, `{}`,
		`{"kind":"Pod"}`, `{"spec":{"nosuch":1}}`, `{"Spec":{}}`, `[]`, `null`, `{"$patch":"replace","spec":{}}`, `{"status":"x"}`,
	} {
		for _, strategic := range []bool{false, true} {
			f.Add([]byte(patch), []byte(`{"metadata":{"name":"p","labels":{"x":"1"},"annotations":{"c":"d"},"managedFields":[{"manager":"m","operation":"Update","apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{}}}]},"spec":{"containers":[{"name":"c"},{"name":"d"}]},"status":{"conditions":[{"type":"Ready","status":"False"}]}}`), strategic)
		}
	}
	f.Fuzz(func(t *testing.T, text, doc []byte, strategic bool) {
		pod := fuzzPod(doc)
		if pod == nil {
			return
		}
		was, _ := json.Marshal(pod)
		narrow, widen, ok := Narrow(pod, text)
		if !ok {
			return
		}
		got, ok := patchedBy(strategic, narrow, text)
		if !ok {
			return
		}
		widen(got)
		want, ok := patchedBy(strategic, pod, text)
		if !ok {
			t.Fatalf("%s by %s succeeds only narrowed", doc, text)
		}
		x, errGot := json.Marshal(got)
		y, errWant := json.Marshal(want)
		if errGot == nil && errWant == nil && string(x) != string(y) {
			t.Fatalf("%s by %s, strategic %v:\nnarrowed %s\nwhole    %s", doc, text, strategic, x, y)
		}
		if now, _ := json.Marshal(pod); string(now) != string(was) {
			t.Fatalf("%s changed its input to %s", text, now)
		}
		if len(got.Spec.Containers) > 0 && len(pod.Spec.Containers) > 0 && &got.Spec.Containers[0] == &pod.Spec.Containers[0] {
			t.Fatal("the patched object shares memory with the one before")
		}
	})
}

func TestNarrow(t *testing.T) {
	pod := &corev1.Pod{}
	pod.Name, pod.Spec.NodeName, pod.Status.Phase = "p", "n", "Running"
	narrow, widen, ok := Narrow(pod, []byte(`{"metadata":{"labels":{"a":"b"}}}`))
	if got := narrow.(*corev1.Pod); !ok || got.Name != "p" || got.Spec.NodeName != "" || got.Status.Phase != "" {
		t.Fatalf("narrowed: %+v, %v", got, ok)
	}
	into := &corev1.Pod{}
	if widen(into); into.Name != "" || into.Spec.NodeName != "n" || into.Status.Phase != "Running" {
		t.Fatalf("widened: %+v", into)
	}
	for _, text := range []string{`{"kind":"Pod"}`, `{"nosuch":{}}`, `{"Spec":{}}`, `[]`, `null`, `{`, `{"$patch":"delete"}`} {
		if _, _, ok := Narrow(pod, []byte(text)); ok {
			t.Errorf("%s can be narrowed", text)
		}
	}
}
