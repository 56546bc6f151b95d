package codec

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/keelson/keelson/apiserver/resources"
)

// Source is an object whose encoded forms are at hand: a watchcache.Item. What
// it returns is shared and not changed.
type Source interface {
	// Message is the object's message with its resourceVersion.
	Message() []byte
	// JSON is the object's fragment.
	JSON() ([]byte, error)
	// AppendJSON appends the fragment to dst.
	AppendJSON(dst []byte) ([]byte, error)
}

// Fragment returns the object's JSON as an item of a list. obj is not changed.
func Fragment(row *resources.Row, obj resources.Object) ([]byte, error) {
	if row.Custom == nil && !obj.GetObjectKind().GroupVersionKind().Empty() {
		obj = obj.DeepCopyObject().(resources.Object)
		obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	}
	return json.Marshal(obj)
}

// envelopeTail is content encoding and content type, both empty, as upstream writes them.
var envelopeTail = []byte{3<<3 | 2, 0, 4<<3 | 2, 0}

func typeMetaSize(apiVersion, kind string) int {
	return 1 + protowire.SizeBytes(len(apiVersion)) + 1 + protowire.SizeBytes(len(kind))
}

func envelopeSize(gvk schema.GroupVersionKind, raw int) int {
	apiVersion, kind := gvk.ToAPIVersionAndKind()
	return len(magic) + 1 + protowire.SizeBytes(typeMetaSize(apiVersion, kind)) + 1 + protowire.SizeBytes(raw) + len(envelopeTail)
}

// appendEnvelopeHead writes everything that stands before a message of raw bytes.
func appendEnvelopeHead(dst []byte, gvk schema.GroupVersionKind, raw int) []byte {
	apiVersion, kind := gvk.ToAPIVersionAndKind()
	dst = append(dst, magic...)
	dst = protowire.AppendTag(dst, 1, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(typeMetaSize(apiVersion, kind)))
	dst = protowire.AppendTag(dst, 1, protowire.BytesType)
	dst = protowire.AppendString(dst, apiVersion)
	dst = protowire.AppendTag(dst, 2, protowire.BytesType)
	dst = protowire.AppendString(dst, kind)
	dst = protowire.AppendTag(dst, 2, protowire.BytesType)
	return protowire.AppendVarint(dst, uint64(raw))
}

// appendTyped writes the fragment of a typed object with kind and apiVersion in front.
func appendTyped(dst, fragment []byte, gvk schema.GroupVersionKind) []byte {
	apiVersion, kind := gvk.ToAPIVersionAndKind()
	dst = append(dst, `{"kind":`...)
	dst = strconv.AppendQuote(dst, kind)
	dst = append(dst, `,"apiVersion":`...)
	dst = strconv.AppendQuote(dst, apiVersion)
	if len(fragment) > 2 {
		dst = append(dst, ',')
	}
	return append(dst, fragment[1:]...)
}

// appendJSON writes one object as JSON, without a newline.
func appendJSON(dst []byte, row *resources.Row, src Source) ([]byte, error) {
	fragment, err := src.JSON()
	if err != nil {
		return dst, err
	}
	if row.Custom != nil {
		return append(dst, fragment...), nil
	}
	return appendTyped(dst, fragment, row.GVK()), nil
}

// AppendSingle writes one object of row in format f (As is the caller's business).
func AppendSingle(dst []byte, row *resources.Row, src Source, f Format) ([]byte, error) {
	if f.Kind == Protobuf {
		if row.Custom != nil {
			return dst, fmt.Errorf("%s: %w", row.Kind, ErrNotAcceptable)
		}
		raw := src.Message()
		dst = appendEnvelopeHead(room(dst, envelopeSize(row.GVK(), len(raw))), row.GVK(), len(raw))
		dst = append(dst, raw...)
		return append(dst, envelopeTail...), nil
	}
	if f.Kind == JSON && !f.Pretty {
		dst, err := appendJSON(dst, row, src)
		return append(dst, '\n'), err
	}
	text, err := appendJSON(nil, row, src)
	if err != nil {
		return dst, err
	}
	return appendText(dst, text, f)
}

// appendText writes JSON text as YAML or indented.
func appendText(dst, text []byte, f Format) ([]byte, error) {
	if f.Kind == YAML {
		y, err := yaml.JSONToYAML(text)
		return append(dst, y...), err
	}
	if f.Pretty {
		b := bytes.NewBuffer(dst)
		err := json.Indent(b, text, "", "  ")
		return b.Bytes(), err
	}
	dst = append(dst, text...)
	return append(dst, '\n'), nil
}

// AppendObject writes any other object: a Status, a Table, a review, a discovery
// document, a list that is not made of cached items. gvk is what it says it is.
func AppendObject(dst []byte, obj runtime.Object, gvk schema.GroupVersionKind, f Format) ([]byte, error) {
	if f.Kind == Protobuf {
		raw, err := protoBytes(obj)
		if err != nil {
			return dst, fmt.Errorf("%w: %w", ErrNotAcceptable, err)
		}
		dst = appendEnvelopeHead(dst, gvk, len(raw))
		dst = append(dst, raw...)
		return append(dst, envelopeTail...), nil
	}
	text, err := objectJSON(obj, gvk)
	if err != nil {
		return dst, err
	}
	return appendText(dst, text, f)
}

func objectJSON(obj runtime.Object, gvk schema.GroupVersionKind) ([]byte, error) {
	if _, custom := obj.(runtime.Unstructured); custom {
		return json.Marshal(obj)
	}
	if !gvk.Empty() && obj.GetObjectKind().GroupVersionKind() != gvk {
		obj = obj.DeepCopyObject()
		obj.GetObjectKind().SetGroupVersionKind(gvk)
	}
	return json.Marshal(obj)
}

// Chunk is how much of a list is gathered before it is written: with the heads of its HTTP/2 frames three full
// records of TLS.
const Chunk = 48<<10 - 64

// Gather writes buf to w if what comes next, of that size, would make it more than a Chunk. It returns the
// buffer to go on with.
func Gather(w io.Writer, buf []byte, next int) ([]byte, error) {
	if len(buf) == 0 || len(buf)+next <= Chunk {
		return buf, nil
	}
	_, err := w.Write(buf)
	return buf[:0], err
}

// WriteList writes a list of row's kind. Memory use does not grow with the list
// but for YAML and indented JSON.
func WriteList[S Source](w io.Writer, row *resources.Row, items []S, meta metav1.ListMeta, f Format) error {
	gvk := row.GVK().GroupVersion().WithKind(row.ListKind)
	switch {
	case f.Kind == Protobuf && row.Custom != nil:
		return fmt.Errorf("%s: %w", row.ListKind, ErrNotAcceptable)
	case f.Kind == Protobuf:
		return writeProtobufList(w, items, meta, gvk, itemsFirst(gvk))
	case f.Kind == JSON && !f.Pretty:
		return writeJSONList(w, row, items, meta, gvk)
	}
	var b bytes.Buffer
	if err := writeJSONList(&b, row, items, meta, gvk); err != nil {
		return err
	}
	out, err := appendText(nil, b.Bytes(), f)
	if err != nil {
		return err
	}
	_, err = w.Write(out)
	return err
}

// itemHead is what stands before the message of an item in a list, at most.
const itemHead = 1 + binary.MaxVarintLen32

// itemsFirst: in this one list items are field 1 and the metadata is field 2.
//
// Source: k8s.io/apimachinery/pkg/apis/meta/v1beta1/generated.proto.
func itemsFirst(list schema.GroupVersionKind) bool {
	return list == schema.GroupVersionKind{Group: metav1.GroupName, Version: "v1beta1", Kind: "PartialObjectMetadataList"}
}

func writeProtobufList[S Source](w io.Writer, items []S, meta metav1.ListMeta, gvk schema.GroupVersionKind, itemsFirst bool) error {
	head, err := meta.Marshal()
	if err != nil {
		return err
	}
	size := 1 + protowire.SizeBytes(len(head))
	for _, it := range items {
		size += 1 + protowire.SizeBytes(len(it.Message()))
	}
	buf := make([]byte, 0, min(Chunk, envelopeSize(gvk, size)))
	buf = appendEnvelopeHead(buf, gvk, size)
	item := protowire.Number(2)
	if itemsFirst {
		item = 1
	} else {
		buf = protowire.AppendBytes(protowire.AppendTag(buf, 1, protowire.BytesType), head)
	}
	for _, it := range items {
		raw := it.Message()
		if buf, err = Gather(w, buf, itemHead+len(raw)); err != nil {
			return err
		}
		buf = protowire.AppendTag(buf, item, protowire.BytesType)
		buf = protowire.AppendBytes(buf, raw)
	}
	if itemsFirst {
		buf = protowire.AppendBytes(protowire.AppendTag(buf, 2, protowire.BytesType), head)
	}
	buf = append(buf, envelopeTail...)
	_, err = w.Write(buf)
	return err
}

// customListMeta is the ListMeta of custom objects, which says also that nothing continues.
type customListMeta struct {
	Continue           string `json:"continue"`
	RemainingItemCount *int64 `json:"remainingItemCount,omitempty"`
	ResourceVersion    string `json:"resourceVersion,omitempty"`
}

func writeJSONList[S Source](w io.Writer, row *resources.Row, items []S, meta metav1.ListMeta, gvk schema.GroupVersionKind) error {
	var shown any = meta
	if row.Custom != nil {
		shown = customListMeta{meta.Continue, meta.RemainingItemCount, meta.ResourceVersion}
	}
	head, err := json.Marshal(shown)
	if err != nil {
		return err
	}
	apiVersion, kind := gvk.ToAPIVersionAndKind()
	buf := make([]byte, 0, min(Chunk, 512+2048*len(items)))
	buf = append(buf, `{"kind":`...)
	buf = strconv.AppendQuote(buf, kind)
	buf = append(buf, `,"apiVersion":`...)
	buf = strconv.AppendQuote(buf, apiVersion)
	buf = append(buf, `,"metadata":`...)
	buf = append(buf, head...)
	buf = append(buf, `,"items":[`...)
	largest := 0 // fragment so far
	for i, it := range items {
		if buf, err = Gather(w, buf, largest); err != nil {
			return err
		}
		before := len(buf)
		if i > 0 {
			buf = append(buf, ',')
		}
		if buf, err = it.AppendJSON(buf); err != nil {
			return err
		}
		largest = max(largest, len(buf)-before)
	}
	buf = append(buf, "]}\n"...)
	_, err = w.Write(buf)
	return err
}

// AppendEvent writes one frame of a watch: typ is "ADDED", "MODIFIED" or "DELETED".
func AppendEvent(dst []byte, row *resources.Row, typ string, src Source, f Format) ([]byte, error) {
	if f.Kind != Protobuf {
		dst = appendEventHead(dst, typ)
		dst, err := appendJSON(dst, row, src)
		return append(dst, "}\n"...), err
	}
	if row.Custom != nil {
		return dst, fmt.Errorf("%s: %w", row.Kind, ErrNotAcceptable)
	}
	raw := src.Message()
	gvk := row.GVK()
	dst = appendProtoEventHead(dst, typ, envelopeSize(gvk, len(raw)))
	dst = appendEnvelopeHead(dst, gvk, len(raw))
	dst = append(dst, raw...)
	return append(dst, envelopeTail...), nil
}

// AppendEventObject writes a frame around any other object: a Status for "ERROR",
// a Table, an object with nothing but its metadata.
func AppendEventObject(dst []byte, typ string, obj runtime.Object, gvk schema.GroupVersionKind, f Format) ([]byte, error) {
	if f.Kind != Protobuf {
		text, err := objectJSON(obj, gvk)
		if err != nil {
			return dst, err
		}
		dst = appendEventHead(dst, typ)
		dst = append(dst, text...)
		return append(dst, "}\n"...), nil
	}
	raw, err := protoBytes(obj)
	if err != nil {
		return dst, fmt.Errorf("%w: %w", ErrNotAcceptable, err)
	}
	dst = appendProtoEventHead(dst, typ, envelopeSize(gvk, len(raw)))
	dst = appendEnvelopeHead(dst, gvk, len(raw))
	dst = append(dst, raw...)
	return append(dst, envelopeTail...), nil
}

func appendEventHead(dst []byte, typ string) []byte {
	dst = append(dst, `{"type":"`...)
	dst = append(dst, typ...)
	return append(dst, `","object":`...)
}

// appendProtoEventHead writes the frame's length and everything up to the object's envelope.
// A frame is four bytes of length, big endian, and a WatchEvent message.
func appendProtoEventHead(dst []byte, typ string, object int) []byte {
	ext := 1 + protowire.SizeBytes(object)
	size := 1 + protowire.SizeBytes(len(typ)) + 1 + protowire.SizeBytes(ext)
	dst = binary.BigEndian.AppendUint32(dst, uint32(size))
	dst = protowire.AppendTag(dst, 1, protowire.BytesType)
	dst = protowire.AppendString(dst, typ)
	dst = protowire.AppendTag(dst, 2, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(ext))
	dst = protowire.AppendTag(dst, 1, protowire.BytesType)
	return protowire.AppendVarint(dst, uint64(object))
}

// InitialEventsEnd is the annotation on the bookmark that ends the initial state
// of a watch with sendInitialEvents. Source: KEP-3157.
const InitialEventsEnd = "k8s.io/initial-events-end"

// AppendBookmark writes a BOOKMARK frame: an object of row's kind with nothing but a
// resourceVersion. last marks the end of the initial events.
func AppendBookmark(dst []byte, row *resources.Row, rev int64, last bool, f Format) ([]byte, error) {
	obj := row.New()
	obj.SetResourceVersion(strconv.FormatInt(rev, 10))
	if last {
		obj.SetAnnotations(map[string]string{InitialEventsEnd: "true"})
	}
	obj.GetObjectKind().SetGroupVersionKind(row.GVK())
	return AppendEventObject(dst, "BOOKMARK", obj, row.GVK(), f)
}
