package codec

import "testing"

// What the answers of kube-apiserver v1.36.2 were to these headers, beside the kinds whose clients must
// name a media type (see TestNames).
func TestNegotiate(t *testing.T) {
	meta := func(as string) Format { return Format{As: as, Group: "meta.k8s.io", Version: "v1"} }
	for _, c := range []struct {
		accept string
		stream bool
		want   Format
		ok     bool
	}{
		{"", false, Format{}, true},
		{"*/*", false, Format{}, true},
		{"*", false, Format{}, true},
		{"application/*", false, Format{}, true},
		{"text/*", false, Format{}, false},
		{"nonsense", false, Format{}, false},
		{"APPLICATION/JSON", false, Format{}, false},
		{"application/json;q=0", false, Format{}, true},
		{"application/json;q=0.8,application/yaml;q=0.9", false, Format{Kind: YAML}, true},
		{"*/*,application/yaml", false, Format{Kind: YAML}, true},
		{"application/*,application/yaml", false, Format{Kind: YAML}, true},
		{"application/xml, application/vnd.kubernetes.protobuf;q=0.3", false, Format{Kind: Protobuf}, true},
		{"application/json;pretty=1", false, Format{Pretty: true}, true},
		{"application/json;charset=utf-8", false, Format{}, true},
		{"application/json;stream=watch", false, Format{}, true},
		{"application/json;stream=bogus", false, Format{}, false},
		{"application/json;stream=bogus,application/yaml", false, Format{Kind: YAML}, true},
		{"application/json; as=Table; v=v1; g=meta.k8s.io", false, meta("Table"), true},
		{"application/json;as=Table;v=v2;g=meta.k8s.io,application/yaml", false, Format{Kind: YAML}, true},
		{"application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", false, Format{}, false},
		{"application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io", false, meta("PartialObjectMetadata"), true},
		{"application/json;as=ConfigMap;v=v1;g=", false, Format{}, false},
		{"application/yaml", true, Format{}, false},
		{"application/vnd.kubernetes.protobuf;stream=watch", true, Format{Kind: Protobuf, Stream: true}, true},
		{"application/json;pretty=1", true, Format{Stream: true}, true},
	} {
		got, ok := Negotiate(c.accept, c.stream, false)
		if ok != c.ok || ok && got != c.want {
			t.Errorf("%q, stream %v: %+v, %v; want %+v, %v", c.accept, c.stream, got, ok, c.want, c.ok)
		}
	}
}

func TestNames(t *testing.T) {
	for accept, want := range map[string]bool{
		"": true, "*/*": true, "application/json": true, "text/html, application/json ;q=0.1": true,
		"application/*": false, "*": false, "APPLICATION/JSON": false, "application/yaml": false,
	} {
		if got := Names(accept, MediaJSON); got != want {
			t.Errorf("%q: %v", accept, got)
		}
	}
}
