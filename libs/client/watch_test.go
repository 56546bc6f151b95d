package client

import (
	"bytes"
	"encoding/binary"
	"io"
	"reflect"
	"testing"
	"testing/iotest"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

func negotiators() (ours, library runtime.ClientNegotiator) {
	codecs := rest.CodecFactoryForGeneratedClient(scheme.Scheme, scheme.Codecs).WithoutConversion()
	library = runtime.NewClientNegotiator(codecs, schema.GroupVersion{Version: "v1"})
	return negotiator{library}, library
}

// frame is a watch event as servers send it, without its length.
func frame(t testing.TB, typ string, gvk schema.GroupVersionKind, obj runtime.Object) []byte {
	t.Helper()
	obj.GetObjectKind().SetGroupVersionKind(gvk)
	var object bytes.Buffer
	if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(obj, &object); err != nil {
		t.Fatal(err)
	}
	event := metav1.WatchEvent{Type: typ, Object: runtime.RawExtension{Raw: object.Bytes()}}
	text, err := event.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

type decoded struct {
	Type   string
	Object runtime.Object
	Failed bool
}

// next is what a watch makes of a frame.
func next(t testing.TB, n runtime.ClientNegotiator, frame []byte) decoded {
	t.Helper()
	objects, events, _, err := n.StreamDecoder(runtime.ContentTypeProtobuf, nil)
	if err != nil {
		t.Fatal(err)
	}
	var event metav1.WatchEvent
	if _, _, err := events.Decode(frame, nil, &event); err != nil {
		return decoded{Failed: true}
	}
	obj, err := runtime.Decode(objects, event.Object.Raw)
	return decoded{event.Type, obj, err != nil}
}

func frames(t testing.TB) map[string][]byte {
	v1 := func(kind string) schema.GroupVersionKind { return schema.GroupVersionKind{Version: "v1", Kind: kind} }
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Labels: map[string]string{"a": "b"}, ManagedFields: []metav1.ManagedFieldsEntry{{
		Manager: "m", FieldsV1: &metav1.FieldsV1{Raw: []byte(`{"f:spec":{}}`)},
	}}}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{
		Limits: corev1.ResourceList{"cpu": resource.MustParse("1")},
	}}}}}
	return map[string][]byte{
		"pod":      frame(t, "ADDED", v1("Pod"), pod),
		"bookmark": frame(t, "BOOKMARK", v1("Pod"), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "7"}}),
		"error":    frame(t, "ERROR", v1("Status"), &metav1.Status{Status: metav1.StatusFailure, Code: 410, Reason: metav1.StatusReasonExpired}),
		"secret":   frame(t, "MODIFIED", v1("Secret"), &corev1.Secret{Data: map[string][]byte{"k": {0, 1}}}),
		"unknown":  frame(t, "ADDED", schema.GroupVersionKind{Group: "no.such", Version: "v1", Kind: "Pod"}, pod.DeepCopy()),
		"empty":    {},
		"cut":      frame(t, "ADDED", v1("Pod"), pod.DeepCopy())[:40],
		"no type":  {0x12, 0x02, 0x0a, 0x00},
	}
}

// A watch gives what client-go's own decoders make of the same bytes.
func TestWatchIsTheLibrarys(t *testing.T) {
	ours, library := negotiators()
	for name, f := range frames(t) {
		got, want := next(t, ours, f), next(t, library, f)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %+v\nwant %+v", name, got, want)
		}
		if name == "pod" && got.Object.(*corev1.Pod).Name != "p" {
			t.Errorf("the pod has become %+v", got.Object)
		}
	}
}

// What was decoded stays as it is when the next frame is read into the same buffer.
func TestWatchKeepsNothingOfTheFrame(t *testing.T) {
	ours, _ := negotiators()
	f := frames(t)["pod"]
	got := next(t, ours, f)
	want := got.Object.DeepCopyObject()
	clear(f)
	if !reflect.DeepEqual(got.Object, want) {
		t.Errorf("it has become %+v", got.Object)
	}
}

// FuzzWatch: bytes that are no event give what client-go makes of them as well.
func FuzzWatch(f *testing.F) {
	for _, text := range frames(f) {
		f.Add(text)
	}
	ours, library := negotiators()
	f.Fuzz(func(t *testing.T, text []byte) {
		got, want := next(t, ours, text), next(t, library, text)
		if got.Failed != want.Failed || !got.Failed && !reflect.DeepEqual(got, want) {
			t.Fatalf("%x:\n got %+v\nwant %+v", text, got, want)
		}
	})
}

func BenchmarkWatch(b *testing.B) {
	ours, library := negotiators()
	text := frames(b)["pod"]
	for name, n := range map[string]runtime.ClientNegotiator{"ours": ours, "library": library} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				next(b, n, text)
			}
		})
	}
}

// Frames are what they were, however the stream comes; while the next is waited for there is no buffer.
func TestFramesOfAStreamReadAhead(t *testing.T) {
	var stream bytes.Buffer
	var want [][]byte
	for _, size := range []int{0, 1, 3, 4, 5, 100, 5000, 5000, ahead - 5, ahead, 3 * ahead, 7} {
		text := bytes.Repeat([]byte{byte(size)}, size)
		want = append(want, text)
		_ = binary.Write(&stream, binary.BigEndian, uint32(size))
		stream.Write(text)
	}
	ours, _ := negotiators()
	_, _, framer, err := ours.StreamDecoder(runtime.ContentTypeProtobuf, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, source := range map[string]io.Reader{
		"whole": bytes.NewReader(stream.Bytes()), "halves": iotest.HalfReader(bytes.NewReader(stream.Bytes())),
		"bytes": iotest.OneByteReader(bytes.NewReader(stream.Bytes())), "error with data": iotest.DataErrReader(bytes.NewReader(stream.Bytes())),
	} {
		g := &gathering{ReadCloser: io.NopCloser(source)}
		frames := framer.(gatheringFramer).Framer.NewFrameReader(g)
		for i, w := range want {
			got := make([]byte, 4*ahead)
			n, err := frames.Read(got)
			if err != nil || !bytes.Equal(got[:n], w) {
				t.Fatalf("%s: frame %d of %d bytes: %d bytes, %v", name, i, len(w), n, err)
			}
		}
		if n, err := frames.Read(make([]byte, 10)); n != 0 || err != io.EOF {
			t.Errorf("%s: after the last frame: %d, %v", name, n, err)
		}
		if g.buf != nil {
			t.Errorf("%s: a buffer is kept at the end", name)
		}
	}
}

type counted struct {
	io.Reader
	reads int
}

func (c *counted) Read(p []byte) (int, error) {
	c.reads++
	return c.Reader.Read(p)
}

// What has come already takes two reads, however many frames it is: one waits for the first length, one takes all.
func TestFramesThatCameTogetherAreReadTogether(t *testing.T) {
	var stream bytes.Buffer
	for range 5 {
		_ = binary.Write(&stream, binary.BigEndian, uint32(5000))
		stream.Write(make([]byte, 5000))
	}
	source := &counted{Reader: &stream}
	ours, _ := negotiators()
	_, _, framer, err := ours.StreamDecoder(runtime.ContentTypeProtobuf, nil)
	if err != nil {
		t.Fatal(err)
	}
	frames := framer.NewFrameReader(io.NopCloser(source))
	for range 5 {
		if n, err := frames.Read(make([]byte, 8192)); n != 5000 || err != nil {
			t.Fatalf("%d bytes, %v", n, err)
		}
	}
	if source.reads != 2 {
		t.Errorf("%d reads", source.reads)
	}
}
