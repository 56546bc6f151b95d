package codec

import (
	"bytes"
	"math/rand"
	"reflect"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/randfill"

	"github.com/keelson/keelson/apiserver/resources"
)

func filler(seed int64, missing float64) *randfill.Filler {
	texts := []string{"", "a", "web-0", "a b", `quote " and \`, "<html> & more", "tab\tline\n\b\f\r\x01\x7f", "größe 漢字 \u2028\u2029", "bad \xff\xc3 utf-8", "app.kubernetes.io/name"}
	r := rand.New(rand.NewSource(seed))
	return randfill.NewWithSeed(seed).NilChance(missing).NumElements(0, 3).MaxDepth(14).Funcs(
		func(s *string, c randfill.Continue) { *s = texts[c.Intn(len(texts))] },
		func(t *metav1.Time, c randfill.Continue) {
			if c.Bool() {
				*t = metav1.NewTime(time.Unix(c.Int63()%4102444800, 0))
			}
		},
		func(t *metav1.MicroTime, c randfill.Continue) {
			if c.Bool() {
				*t = metav1.NewMicroTime(time.Unix(c.Int63()%4102444800, c.Int63()%1e9))
			}
		},
		func(d *metav1.Duration, c randfill.Continue) {
			d.Duration = time.Duration(c.Int63() >> uint(c.Intn(60)))
		},
		func(q *resource.Quantity, c randfill.Continue) {
			*q = resource.MustParse([]string{"0", "1", "500m", "128Mi", "1.5Gi", "2k", "-3", "1e3", "100n"}[c.Intn(9)])
		},
		func(v *intstr.IntOrString, c randfill.Continue) {
			*v = []intstr.IntOrString{intstr.FromInt32(0), intstr.FromInt32(-80), intstr.FromString("http"), intstr.FromString("25%")}[c.Intn(4)]
		},
		func(f *metav1.FieldsV1, c randfill.Continue) {
			f.Raw = []byte([]string{`{"f:metadata":{"f:labels":{".":{},"f:app":{}}}}`, `{"k:{\"name\":\"a<b\"}":{}}`}[c.Intn(2)])
		},
		func(e *runtime.RawExtension, c randfill.Continue) {
			if c.Bool() {
				e.Raw = []byte(` {"a": [1, 2.50, "x&y"]} `)
			}
		},
		func(m *map[string]string, c randfill.Continue) {
			if n := r.Intn(4); n > 0 {
				*m = map[string]string{}
				for range n {
					(*m)[texts[c.Intn(len(texts))]] = texts[c.Intn(len(texts))]
				}
			}
		},
	)
}

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
			filler(seed, []float64{0.1, 0.5, 0.9}[seed%3]).Fill(obj)
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
	filler(1, 0.3).Fill(pod)
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
	filler(4, 0.5).Fill(pod)
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
