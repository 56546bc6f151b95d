package client

import (
	"bytes"
	"io"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"
)

// clientset watches the core group without the copies that client-go makes of each event: of the frame's
// object, and of the message in it. Pods are most of what the daemons read.
type clientset struct {
	kubernetes.Interface
	core corev1.CoreV1Interface
}

func (c *clientset) CoreV1() corev1.CoreV1Interface { return c.core }

func newClientset(rc *rest.Config) (*clientset, error) {
	hc, err := rest.HTTPClientFor(rc)
	if err != nil {
		return nil, err
	}
	all, err := kubernetes.NewForConfigAndClient(rc, hc)
	if err != nil {
		return nil, err
	}
	group := *rc
	group.GroupVersion, group.APIPath = &schema.GroupVersion{Version: "v1"}, "/api"
	base, path, err := rest.DefaultServerUrlFor(&group)
	if err != nil {
		return nil, err
	}
	var limit flowcontrol.RateLimiter
	if rc.QPS > 0 {
		limit = flowcontrol.NewTokenBucketRateLimiter(rc.QPS, rc.Burst)
	}
	codecs := rest.CodecFactoryForGeneratedClient(scheme.Scheme, scheme.Codecs).WithoutConversion()
	core, err := rest.NewRESTClient(base, path, rest.ClientContentConfig{
		AcceptContentTypes: rc.AcceptContentTypes, ContentType: rc.ContentType, GroupVersion: *group.GroupVersion,
		Negotiator: negotiator{runtime.NewClientNegotiator(codecs, *group.GroupVersion)},
	}, limit, hc)
	if err != nil {
		return nil, err
	}
	return &clientset{Interface: all, core: corev1.New(core)}, nil
}

// negotiator decodes watches of protobuf itself.
type negotiator struct{ runtime.ClientNegotiator }

func (n negotiator) StreamDecoder(contentType string, params map[string]string) (runtime.Decoder, runtime.Serializer, runtime.Framer, error) {
	objects, events, framer, err := n.ClientNegotiator.StreamDecoder(contentType, params)
	if err == nil && contentType == runtime.ContentTypeProtobuf {
		return objectDecoder{objects}, eventDecoder{events}, gatheringFramer{framer}, nil
	}
	return objects, events, framer, err
}

// gatheringFramer reads what has come of a stream in one piece. With every read HTTP/2 tells the server how much it may
// send, if it was more than 4 KiB: with every pod, that is, each time a record for both sides to seal, send and open.
type gatheringFramer struct{ runtime.Framer }

func (f gatheringFramer) NewFrameReader(r io.ReadCloser) io.ReadCloser {
	return f.Framer.NewFrameReader(&gathering{ReadCloser: r})
}

// gathering is a reader that looks ahead. While it waits for the length of the next frame it has no buffer: there are many
// watches, and most of them wait.
type gathering struct {
	io.ReadCloser
	buf  *[]byte // nil: nothing was read ahead
	rest []byte
}

// lengthSize is that of a frame's length, and ahead how much is read at a time.
const (
	lengthSize = 4
	ahead      = 32 << 10
)

var aheads = sync.Pool{New: func() any { b := make([]byte, ahead); return &b }}

func (g *gathering) Read(p []byte) (int, error) {
	if g.buf == nil {
		if len(p) <= lengthSize || len(p) >= ahead {
			return g.ReadCloser.Read(p)
		}
		buf := aheads.Get().(*[]byte)
		n, err := g.ReadCloser.Read(*buf)
		if n == 0 {
			aheads.Put(buf)
			return 0, err
		}
		g.buf, g.rest = buf, (*buf)[:n] // an error comes again with the next read
	}
	n := copy(p, g.rest)
	if g.rest = g.rest[n:]; len(g.rest) == 0 {
		aheads.Put(g.buf)
		g.buf, g.rest = nil, nil
	}
	return n, nil
}

// eventDecoder decodes a WatchEvent whose object stays in the frame. What is not plain is left to the serializer.
type eventDecoder struct{ runtime.Serializer }

// Decode implements runtime.Decoder. The event's object is valid until the frame is written to again.
//
// Source: k8s.io/apimachinery, generated.proto of meta/v1 (WatchEvent) and of runtime (RawExtension).
func (d eventDecoder) Decode(frame []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	if event, ok := into.(*metav1.WatchEvent); ok {
		var fields, object [3][]byte
		if split(frame, &fields) && split(fields[2], &object) && object[2] == nil && len(object[1]) > 0 {
			event.Type, event.Object.Raw = string(fields[1]), object[1]
			return event, nil, nil
		}
	}
	return d.Serializer.Decode(frame, defaults, into)
}

// split finds the fields 1 and 2 of a message, and nothing else, each at most once and of bytes.
func split(message []byte, fields *[3][]byte) bool {
	for len(message) > 0 {
		n, typ, size := protowire.ConsumeTag(message)
		if size < 0 || typ != protowire.BytesType || n > 2 || fields[n] != nil {
			return false
		}
		value, more := protowire.ConsumeBytes(message[size:])
		if more < 0 {
			return false
		}
		if fields[n] = value; value == nil {
			fields[n] = []byte{}
		}
		message = message[size+more:]
	}
	return true
}

// objectDecoder decodes an object without a copy of its message.
type objectDecoder struct{ runtime.Decoder }

// envelope begins what is stored and sent as protobuf.
var envelope = []byte("k8s\x00")

// Decode implements runtime.Decoder. Statuses, what has an encoding of its own, and kinds that the scheme
// does not know are left to the library.
//
// Source: Kubernetes API concepts, "Kubernetes Protobuf encoding" (Unknown, TypeMeta).
func (d objectDecoder) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	if into == nil {
		if obj, gvk, err := decode(data); obj != nil || err != nil {
			return obj, gvk, err
		}
	}
	return d.Decoder.Decode(data, defaults, into)
}

// decode returns nil when it is not its to tell.
func decode(data []byte) (runtime.Object, *schema.GroupVersionKind, error) {
	message, ok := bytes.CutPrefix(data, envelope)
	if !ok {
		return nil, nil, nil
	}
	var meta, raw []byte
	for len(message) > 0 {
		n, typ, size := protowire.ConsumeTag(message)
		if size < 0 || typ != protowire.BytesType {
			return nil, nil, nil
		}
		value, more := protowire.ConsumeBytes(message[size:])
		if more < 0 {
			return nil, nil, nil
		}
		switch {
		case n == 1 && meta == nil:
			meta = value
		case n == 2 && raw == nil:
			raw = value
		case (n == 3 || n == 4) && len(value) == 0: // contentEncoding, contentType
		default:
			return nil, nil, nil
		}
		message = message[size+more:]
	}
	var names [3][]byte
	if !split(meta, &names) {
		return nil, nil, nil
	}
	gvk := schema.FromAPIVersionAndKind(string(names[1]), string(names[2]))
	if gvk.Kind == "Status" {
		return nil, nil, nil
	}
	obj, err := scheme.Scheme.New(gvk)
	if err != nil {
		return nil, nil, nil
	}
	to, ok := obj.(interface{ Unmarshal([]byte) error })
	if !ok {
		return nil, nil, nil
	}
	if err := to.Unmarshal(raw); err != nil {
		return nil, nil, err
	}
	return obj, &gvk, nil
}
