package codec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

var (
	// ErrMediaType: the request's Content-Type is not served: 415.
	ErrMediaType = errors.New("unsupported media type")
	// ErrNotAcceptable: the object has no such form: 406.
	ErrNotAcceptable = errors.New("only the following media types are accepted: application/json, application/yaml")
	// ErrTooLarge: a YAML document grows beyond the limit when its aliases are expanded.
	ErrTooLarge = errors.New("document is too large")
)

// Input is a decoded request body.
type Input struct {
	Object runtime.Object
	// GVK is what the body names; fields that it leaves out are those of the default.
	GVK schema.GroupVersionKind
	// Strict are unknown and duplicate fields, in the order found, such as
	// `unknown field "spec.foo"`. Only JSON and YAML have them.
	Strict []error
}

// KindOf returns what a Content-Type header names; an empty one is JSON.
func KindOf(contentType string) (Kind, error) {
	if contentType == "" {
		return JSON, nil
	}
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return 0, fmt.Errorf("%w: %q", ErrMediaType, contentType)
	}
	switch media {
	case MediaJSON:
		return JSON, nil
	case MediaYAML:
		return YAML, nil
	case MediaProtobuf:
		return Protobuf, nil
	}
	return 0, fmt.Errorf("%w: %q", ErrMediaType, media)
}

// maxExpanded bounds a YAML document after its aliases are expanded.
const maxExpanded = 16 << 20

// DecodeRequest decodes a body into what make returns. make is called with the
// kind that the body names (completed from def) and returns the object to fill, or
// an error that is passed on: this is where a wrong kind is refused. A custom
// kind's object is *unstructured.Unstructured.
func DecodeRequest(contentType string, body []byte, def schema.GroupVersionKind, make func(schema.GroupVersionKind) (runtime.Object, error)) (*Input, error) {
	kind, err := KindOf(contentType)
	if err != nil {
		return nil, err
	}
	if kind == Protobuf {
		return decodeProtobuf(body, def, make)
	}
	in := &Input{}
	if kind == YAML {
		text, strict, err := yamlToJSON(body)
		if err != nil {
			return nil, err
		}
		body, in.Strict = text, strict
	}
	body = bytes.TrimSpace(body)
	if len(body) == 0 {
		return nil, errors.New("couldn't get version/kind; json parse error: unexpected end of JSON input")
	}
	if in.GVK, err = peek(body, def); err != nil {
		return nil, err
	}
	if in.Object, err = make(in.GVK); err != nil {
		return nil, err
	}
	strict, err := UnmarshalStrict(body, in.Object)
	in.Strict = append(in.Strict, strict...)
	return in, err
}

// UnmarshalStrict decodes JSON with case-sensitive names and reports unknown and
// duplicate fields apart from errors.
func UnmarshalStrict(text []byte, obj runtime.Object) (strict []error, err error) {
	if u, ok := obj.(*unstructured.Unstructured); ok {
		m := map[string]any{}
		strict, err = kjson.UnmarshalStrict(text, &m, kjson.DisallowDuplicateFields)
		u.Object = m
		return strict, err
	}
	return kjson.UnmarshalStrict(text, obj)
}

func peek(text []byte, def schema.GroupVersionKind) (schema.GroupVersionKind, error) {
	var tm struct {
		APIVersion string `json:"apiVersion,omitempty"`
		Kind       string `json:"kind,omitempty"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(text, &tm); err != nil {
		return def, fmt.Errorf("couldn't get version/kind; json parse error: %w", err)
	}
	gvk := def
	if tm.Kind != "" {
		gvk.Kind = tm.Kind
	}
	if tm.APIVersion != "" {
		gv, err := schema.ParseGroupVersion(tm.APIVersion)
		if err != nil {
			return def, err
		}
		gvk.Group, gvk.Version = gv.Group, gv.Version
	}
	return gvk, nil
}

func decodeProtobuf(body []byte, def schema.GroupVersionKind, make func(schema.GroupVersionKind) (runtime.Object, error)) (*Input, error) {
	switch {
	case len(body) == 0:
		return nil, errors.New("empty data")
	case len(body) == len(magic) && bytes.Equal(body, magic):
		return nil, errors.New("empty body")
	case !bytes.HasPrefix(body, magic):
		return nil, errors.New("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")
	}
	raw, gvk, err := Unwrap(body)
	if err != nil {
		return nil, err
	}
	if gvk.Kind == "" {
		gvk.Kind = def.Kind
	}
	if gvk.Version == "" {
		gvk.Group, gvk.Version = def.Group, def.Version
	}
	in := &Input{GVK: gvk}
	if in.Object, err = make(gvk); err != nil {
		return nil, err
	}
	m, ok := in.Object.(protoMessage)
	if !ok {
		return nil, fmt.Errorf("%w: %s has no protobuf form", ErrMediaType, gvk.Kind)
	}
	if err := m.Unmarshal(raw); err != nil {
		return nil, err
	}
	in.Object.GetObjectKind().SetGroupVersionKind(gvk)
	return in, nil
}

// yamlToJSON converts one document. Duplicate keys are reported as strict errors.
func yamlToJSON(body []byte) (text []byte, strict []error, err error) {
	if err := boundYAML(body); err != nil {
		return nil, nil, err
	}
	text, err = yaml.YAMLToJSONStrict(body)
	if err != nil {
		first := err
		if text, err = yaml.YAMLToJSON(body); err != nil {
			return nil, nil, err
		}
		strict = append(strict, first)
	}
	if len(text) > maxExpanded {
		return nil, nil, ErrTooLarge
	}
	return text, strict, nil
}

// boundYAML refuses documents whose aliases could multiply: the parser's own guard
// stops the worst, but lets documents of hundreds of megabytes through.
func boundYAML(body []byte) error {
	anchors := bytes.Count(body, []byte("&"))
	aliases := bytes.Count(body, []byte("*"))
	if anchors > 1 && aliases > 1 && (anchors > 128 || aliases > 1024) && len(body)*min(aliases, 1<<16) > maxExpanded {
		return ErrTooLarge
	}
	return nil
}

// ReadBody reads at most limit bytes; more is ErrTooLarge.
func ReadBody(r io.Reader, limit int64) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(body)) > limit {
		return nil, ErrTooLarge
	}
	return body, nil
}
