package codec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/filltest"
	"github.com/keelson/keelson/apiserver/resources"
)

// fuzzRows are the rows that a fuzz target picks from by number.
func fuzzRows() []*resources.Row {
	var out []*resources.Row
	for _, row := range resources.Table() {
		if row.Custom == nil && row.New != nil {
			out = append(out, row)
		}
	}
	return out
}

func pick(rows []*resources.Row, n uint8) *resources.Row { return rows[int(n)%len(rows)] }

// seedPod has one value of nearly every shape.
func seedPod() *corev1.Pod {
	pod := &corev1.Pod{}
	filltest.New(3, 0.6).Fill(pod)
	pod.ResourceVersion = ""
	return pod
}

// What a client sends is refused or read; what was read can be written in both forms,
// and is the same when it is read again.
func FuzzDecodeRequest(f *testing.F) {
	rows := fuzzRows()
	text := `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i","ports":[{"containerPort":80}]}]}}`
	for i, row := range rows {
		f.Add(uint8(i), uint8(0), []byte(fmt.Sprintf(`{"apiVersion":%q,"kind":%q,"metadata":{"name":"a"},"spec":{},"status":{}}`, row.GVK().GroupVersion(), row.Kind)))
		if row.Kind == "Pod" {
			pb, _, err := Value(row, seedPod())
			if err != nil {
				f.Fatal(err)
			}
			f.Add(uint8(i), uint8(0), []byte(text))
			f.Add(uint8(i), uint8(1), []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - &c {name: c, image: i}\n  - *c\n"))
			f.Add(uint8(i), uint8(2), pb)
		}
	}
	media := []string{MediaJSON, MediaYAML, MediaProtobuf}
	f.Fuzz(func(t *testing.T, kind, form uint8, body []byte) {
		row := pick(rows, kind)
		wrong := errors.New("another kind")
		make := func(gvk schema.GroupVersionKind) (runtime.Object, error) {
			if gvk != row.GVK() {
				return nil, wrong
			}
			return row.New(), nil
		}
		in, err := DecodeRequest(media[int(form)%len(media)], body, row.GVK(), make)
		if err != nil {
			return
		}
		obj := in.Object.(resources.Object)
		first, err := json.Marshal(obj)
		if err != nil {
			return // such as a year that has no text: refused later
		}
		// Protobuf can say what JSON cannot (text that is no UTF-8, a pointer to no time): one round
		// through JSON, and then nothing changes any more.
		round := func(text []byte) []byte {
			again, err := DecodeRequest(MediaJSON, text, row.GVK(), make)
			if err != nil {
				t.Fatalf("%s reads as %s, which cannot be read: %v", body, text, err)
			}
			out, err := json.Marshal(again.Object)
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		if second := round(first); !bytes.Equal(second, round(second)) {
			t.Fatalf("written, read and written again:\n%s\n%s", second, round(second))
		}
		if _, ok := in.Object.(protoMessage); !ok {
			return
		}
		stored, _, err := Value(row, obj)
		if err != nil {
			return
		}
		if back, err := DecodeRequest(MediaProtobuf, stored, row.GVK(), make); err != nil {
			t.Fatalf("what is written as protobuf cannot be read: %v\n%s", err, first)
		} else if once, _, err := Value(row, back.Object.(resources.Object)); err != nil || !bytes.Equal(once, stored) {
			t.Fatalf("protobuf differs after another round (%v): %s", err, first)
		}
	})
}

// The text made of a message is that of the decoded object, whatever the object.
// Only messages as encoders write them are compared: a field that stands twice is legal
// protobuf and is never stored.
func FuzzTranscode(f *testing.F) {
	rows := fuzzRows()
	for i, row := range rows {
		if _, ok := row.New().(protoMessage); !ok {
			continue
		}
		for seed := range int64(2) {
			obj := row.New()
			filltest.New(seed, 0.7).Fill(obj)
			obj.SetResourceVersion("")
			raw, err := Message(row, obj)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(uint8(i), raw)
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, raw []byte) {
		row := pick(rows, kind)
		if _, ok := row.New().(protoMessage); !ok {
			return
		}
		_, _ = FromMessage(row, raw) // any bytes: no panic
		obj, err := DecodeMessage(row, raw)
		if err != nil {
			return
		}
		if raw, err = protoBytes(obj); err != nil {
			return
		}
		if obj, err = DecodeMessage(row, raw); err != nil {
			t.Fatalf("%s: what was written cannot be read: %v", row.Kind, err)
		}
		want, err := Fragment(row, obj)
		if err != nil {
			return
		}
		got, err := FromMessage(row, raw)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s (%v):\ngot  %s\nwant %s", row.Kind, err, got, want)
		}
		rev, err := WithRev(row, raw, 77)
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeMessage(row, rev)
		if err != nil || back.GetResourceVersion() != "77" {
			t.Fatalf("%s: with its revision it reads as %v, %v", row.Kind, back, err)
		}
		back.SetResourceVersion(obj.GetResourceVersion())
		if text, err := Fragment(row, back); err != nil || !bytes.Equal(text, want) {
			t.Fatalf("%s: setting the revision changed more (%v):\ngot  %s\nwant %s", row.Kind, err, text, want)
		}
	})
}

// What lies in etcd may have been written by anybody: it is read or refused.
func FuzzStored(f *testing.F) {
	rows := fuzzRows()
	for i, row := range rows {
		if row.Kind == "Pod" {
			v, _, err := Value(row, seedPod())
			if err != nil {
				f.Fatal(err)
			}
			f.Add(uint8(i), v)
			f.Add(uint8(i), []byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"}}`))
			f.Add(uint8(i), []byte("k8s:enc:aescbc:v1:key:0123456789abcdef"))
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, value []byte) {
		row := pick(rows, kind)
		obj, err := Decode(row, value, 5)
		if err != nil {
			return
		}
		if obj.GetResourceVersion() != "5" {
			t.Fatalf("read at 5, says %q", obj.GetResourceVersion())
		}
		if _, ok := obj.(protoMessage); !ok {
			return
		}
		again, _, err := Value(row, obj)
		if err != nil {
			return
		}
		if _, gvk, err := Unwrap(again); err != nil || gvk != row.GVK() {
			t.Fatalf("stored as %v, %v", gvk, err)
		}
		if _, err := Decode(row, again, 5); err != nil {
			t.Fatalf("what was stored cannot be read: %v", err)
		}
	})
}

type fuzzSource struct{ raw, text []byte }

func (s fuzzSource) Message() []byte       { return s.raw }
func (s fuzzSource) JSON() ([]byte, error) { return s.text, nil }

func (s fuzzSource) AppendJSON(dst []byte) ([]byte, error) { return append(dst, s.text...), nil }

// Whatever a client accepts, it gets that, well-formed, or 406.
func FuzzNegotiate(f *testing.F) {
	for _, s := range []string{
		"", "*/*", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json", "application/vnd.kubernetes.protobuf;q=0.5, application/yaml",
		"application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", "application/json;pretty=1;q=NaN", "application/json;q=1e400,text/html",
	} {
		f.Add(s, false, true)
	}
	row := resources.Resource[corev1.Pod]{Version: "v1", Kind: "Pod", Plural: "pods"}.Row()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}}
	raw, err := Message(row, pod)
	if err != nil {
		f.Fatal(err)
	}
	text, err := Fragment(row, pod)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, accept string, stream, pretty bool) {
		got, ok := Negotiate(accept, stream, pretty)
		if !ok {
			return
		}
		if got.Stream != stream || stream && (got.Pretty || got.Kind == YAML) || got.As == "Table" && got.Kind == Protobuf {
			t.Fatalf("%q: %+v", accept, got)
		}
		if kind, err := KindOf(got.ContentType()); err != nil || kind != got.Kind {
			t.Fatalf("%q: content type %q is %v, %v", accept, got.ContentType(), kind, err)
		}
		if got.As != "" || stream {
			return
		}
		out, err := AppendSingle(nil, row, fuzzSource{raw, text}, got)
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeRequest(got.ContentType(), out, row.GVK(), func(schema.GroupVersionKind) (runtime.Object, error) { return row.New(), nil })
		if err != nil || back.Object.(resources.Object).GetName() != "p" {
			t.Fatalf("%q is answered with %q: %v", accept, out, err)
		}
	})
}

// A YAML document is not read when that would take more than it is worth.
func FuzzYAML(f *testing.F) {
	f.Add([]byte("a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n"))
	f.Add([]byte("a: 1\na: 2\n"))
	f.Add([]byte("<<: {a: 1}\n? [x]\n: y\n"))
	f.Add([]byte("--- \n!!binary aGVsbG8=\n...\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		text, _, err := yamlToJSON(body)
		if err != nil {
			return
		}
		if !json.Valid(text) || len(text) > maxExpanded {
			t.Fatalf("%q becomes %d bytes: %.200s", body, len(text), text)
		}
	})
}
