package codec

import (
	"bytes"
	"math/rand"
	"reflect"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/keelson/keelson/apiserver/filltest"
	"github.com/keelson/keelson/apiserver/resources"
)

// Every kind's message becomes the text that encoding/json writes for the decoded object.
func TestFromMessageIsEncodingJSON(t *testing.T) {
	slow := 0
	for _, row := range resources.Table() {
		if _, ok := row.New().(protoMessage); !ok || row.Custom != nil {
			continue
		}
		if p := planOf(reflect.TypeOf(row.New()).Elem()); p.err != nil {
			slow++
			t.Logf("%s is decoded: %v", row.Kind, p.err)
			continue
		}
		if row.Restore != nil {
			slow++
			t.Logf("%s is decoded: its message does not hold all of it", row.Kind)
			continue
		}
		for seed := range int64(60) {
			obj := row.New()
			filltest.New(seed, []float64{0.1, 0.5, 0.9}[seed%3]).Fill(obj)
			obj.SetResourceVersion("")
			raw, err := Message(row, obj)
			if err != nil {
				t.Fatal(err)
			}
			decoded, err := DecodeMessage(row, raw)
			if err != nil {
				t.Fatal(err)
			}
			want, err := Fragment(row, decoded)
			if err != nil {
				t.Fatal(err)
			}
			e := &encoder{}
			got, err := e.message(nil, planOf(reflect.TypeOf(row.New()).Elem()), raw)
			if err != nil {
				t.Fatalf("%s, seed %d: %v", row.Kind, seed, err)
			}
			if !bytes.Equal(got, want) {
				i := 0
				for i < len(got) && i < len(want) && got[i] == want[i] {
					i++
				}
				t.Fatalf("%s, seed %d: at byte %d\ngot  ...%.200s\nwant ...%.200s", row.Kind, seed, i, got[max(0, i-60):], want[max(0, i-60):])
			}
		}
	}
	if slow > 3 {
		t.Errorf("%d kinds are decoded for JSON", slow)
	}
}

// Broken bytes are an error or some text, never a panic.
func TestFromMessageBrokenBytes(t *testing.T) {
	row := resources.Resource[corev1.Pod]{Version: "v1", Kind: "Pod", Plural: "pods"}.Row()
	pod := &corev1.Pod{}
	filltest.New(1, 0.3).Fill(pod)
	raw, err := Message(row, pod)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewSource(1))
	for range 3000 {
		bad := bytes.Clone(raw)
		for range 1 + r.Intn(4) {
			bad[r.Intn(len(bad))] = byte(r.Intn(256))
		}
		bad = bad[:r.Intn(len(bad)+1)]
		e := &encoder{}
		_, _ = e.message(nil, planOf(reflect.TypeFor[corev1.Pod]()), bad)
	}
}

func BenchmarkFromMessage(b *testing.B) {
	row := resources.Resource[corev1.Pod]{Version: "v1", Kind: "Pod", Plural: "pods"}.Row()
	pod := &corev1.Pod{}
	filltest.New(4, 0.5).Fill(pod)
	raw, _ := Message(row, pod)
	b.Run("transcode", func(b *testing.B) {
		for b.Loop() {
			text, _ := FromMessage(row, raw)
			b.SetBytes(int64(len(text)))
		}
	})
	b.Run("decode", func(b *testing.B) {
		for b.Loop() {
			obj, _ := DecodeMessage(row, raw)
			text, _ := Fragment(row, obj)
			b.SetBytes(int64(len(text)))
		}
	})
}

// A stateful set's message holds no apiVersion and kind of its claim templates; its JSON does.
func TestWhatAMessageLacksIsRestored(t *testing.T) {
	for _, row := range resources.Table() {
		if row.Kind != "StatefulSet" {
			continue
		}
		obj := row.New().(*appsv1.StatefulSet)
		obj.Spec.VolumeClaimTemplates = make([]corev1.PersistentVolumeClaim, 1)
		raw, err := Message(row, obj)
		if err != nil {
			t.Fatal(err)
		}
		text, err := FromMessage(row, raw)
		if want := `"volumeClaimTemplates":[{"kind":"PersistentVolumeClaim","apiVersion":"v1",`; err != nil || !bytes.Contains(text, []byte(want)) {
			t.Errorf("got %s, %v\nwant in it %s", text, err, want)
		}
	}
}
