package rest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/watchcache"
)

// metadataRow is the kind of which PartialObjectMetadata answers are made.
func metadataRow(version string) *resources.Row {
	return &resources.Row{
		Group: metav1.GroupName, Version: version, Kind: "PartialObjectMetadata", ListKind: "PartialObjectMetadataList",
		New: func() resources.Object { return &metav1.PartialObjectMetadata{} },
	}
}

// partial is an item without spec and status. Nothing but metadata is decoded.
type partial struct {
	*watchcache.Item
	custom bool
	inList string // for a list's items: the kind and version that JSON repeats in each
}

// rawMetadata is the encoded ObjectMeta inside a protobuf message.
func rawMetadata(raw []byte) ([]byte, error) {
	for len(raw) > 0 {
		num, typ, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		if num == 1 && typ == protowire.BytesType {
			v, m := protowire.ConsumeBytes(raw[n:])
			if m < 0 {
				return nil, protowire.ParseError(m)
			}
			return v, nil
		}
		m := protowire.ConsumeFieldValue(num, typ, raw[n:])
		if m < 0 {
			return nil, protowire.ParseError(m)
		}
		raw = raw[n+m:]
	}
	return nil, fmt.Errorf("message has no metadata")
}

// shownMetadata is rawMetadata without what only the object as a whole shows.
func shownMetadata(it *watchcache.Item) ([]byte, error) {
	raw, err := rawMetadata(it.Raw())
	if err != nil || len(it.Row.Disguised) == 0 {
		return raw, err
	}
	var meta metav1.ObjectMeta
	if err := meta.Unmarshal(raw); err != nil {
		return nil, err
	}
	for _, a := range it.Row.Disguised {
		delete(meta.Annotations, a)
	}
	return meta.Marshal()
}

// Message is a PartialObjectMetadata message: as in every kind, field 1 is the metadata.
func (p partial) Message() []byte {
	if p.custom {
		var head struct {
			Metadata metav1.ObjectMeta `json:"metadata"`
		}
		if json.Unmarshal(p.Item.Raw(), &head) != nil {
			return nil
		}
		raw, _ := (&metav1.PartialObjectMetadata{ObjectMeta: head.Metadata}).Marshal()
		return raw
	}
	if num, typ, n := protowire.ConsumeField(p.Item.Raw()); len(p.Item.Row.Disguised) == 0 && num == 1 && typ == protowire.BytesType && n > 0 {
		return p.Item.Raw()[:n:n] // metadata stands first in what this server writes
	}
	meta, err := shownMetadata(p.Item)
	if err != nil {
		return nil
	}
	return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), meta)
}

// JSON is AppendJSON to nothing.
func (p partial) JSON() ([]byte, error) { return p.AppendJSON(nil) }

// AppendJSON appends a PartialObjectMetadata without kind and version, but in lists.
func (p partial) AppendJSON(dst []byte) ([]byte, error) {
	meta, err := metadataJSON(p.Item, p.custom)
	if err != nil {
		return dst, err
	}
	head := `{"metadata":`
	if p.inList != "" {
		head = `{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/` + p.inList + `","metadata":`
	}
	dst = slices.Grow(dst, len(head)+len(meta)+1)
	dst = append(dst, head...)
	dst = append(dst, meta...)
	return append(dst, '}'), nil
}

// metadataJSON is the object's metadata as JSON, shared.
func metadataJSON(it *watchcache.Item, custom bool) ([]byte, error) {
	if custom {
		var head struct {
			Metadata json.RawMessage `json:"metadata"`
		}
		err := json.Unmarshal(it.Raw(), &head)
		return head.Metadata, err
	}
	return it.Form(watchcache.FormMetadata, func() ([]byte, error) {
		raw, err := shownMetadata(it)
		if err != nil {
			return nil, err
		}
		text, err := codec.AppendMetadata(nil, raw)
		return bytes.Clone(text), err // without the room that it grew in
	})
}

func (c *Call) writeMetadataList(w io.Writer, items []*watchcache.Item, meta metav1.ListMeta) error {
	if len(items) == 0 && c.format.Kind != codec.Protobuf { // upstream's are not [] but null
		row := metadataRow(c.format.Version)
		text, err := codec.AppendObject(nil, &metav1.PartialObjectMetadataList{ListMeta: meta}, row.GVK().GroupVersion().WithKind(row.ListKind), c.format)
		if err == nil {
			_, err = w.Write(text)
		}
		return err
	}
	parts := make([]partial, len(items))
	for i, it := range items {
		parts[i] = partial{it, c.Row.Custom != nil, c.format.Version}
	}
	return codec.WriteList(w, metadataRow(c.format.Version), parts, meta, c.format)
}

// respondAs answers with one object as a Table or as its metadata.
func (c *Call) respondAs(code int, it *watchcache.Item) {
	var raw []byte
	var err error
	if c.format.As == "Table" {
		raw, err = c.table([]*watchcache.Item{it}, metav1.ListMeta{ResourceVersion: fmt.Sprint(it.Rev)}, true)
	} else {
		raw, err = codec.AppendSingle(nil, metadataRow(c.format.Version), partial{it, c.Row.Custom != nil, ""}, c.format)
	}
	if err != nil {
		c.fail(err)
		return
	}
	writeBody(c.W, c.R, code, c.format.ContentType(), raw)
}
