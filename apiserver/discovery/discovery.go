// Package discovery tells clients what is served: /api and /apis, one document at
// a time and aggregated, and the OpenAPI descriptions of it, all derived from the
// rows of the resource table.
//
// A document is made when it is first asked for and kept, compressed, until the
// rows change. Its ETag depends on its content alone, so that replicas of one
// version agree and clients keep what they have.
package discovery

import (
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	apidiscovery "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/resources"
)

// Server answers /api, /apis and everything below that is not a resource, and /openapi.
type Server struct {
	reg     *resources.Registry
	others  Others
	version string

	mu   sync.Mutex // guards the rest
	at   [2]uint64  // the versions of the registry and of the others that docs belong to
	docs map[string]*document
}

// document is one answer, compressed.
type document struct {
	etag, contentType string
	zip               []byte
	size              int
}

// New returns a Server. version is the gitVersion; others may be nil.
func New(reg *resources.Registry, others Others, version string) *Server {
	if others == nil {
		others = alone{}
	}
	return &Server{reg: reg, others: others, version: version}
}

// doc returns the document of a key, made by make if need be.
func (s *Server) doc(key string, make func() (body []byte, contentType string, err error)) (*document, error) {
	v := [2]uint64{s.reg.Version(), s.others.Version()}
	s.mu.Lock()
	if s.docs == nil || s.at != v {
		s.docs, s.at = map[string]*document{}, v
	}
	d := s.docs[key]
	s.mu.Unlock()
	if d != nil {
		return d, nil
	}
	body, contentType, err := make()
	if err != nil {
		return nil, err
	}
	sum := sha512.Sum512(body)
	var b bytes.Buffer
	z, _ := gzip.NewWriterLevel(&b, gzip.DefaultCompression)
	_, _ = z.Write(body)
	_ = z.Close()
	d = &document{etag: strings.ToUpper(hex.EncodeToString(sum[:])), contentType: contentType, zip: bytes.Clone(b.Bytes()), size: len(body)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == v {
		s.docs[key] = d
	}
	return d, nil
}

// serve writes a document, or 304 when the client has it.
func (d *document) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	etag := strconv.Quote(d.etag)
	h.Set("ETag", etag)
	h.Add("Vary", "Accept")
	if h.Get("Cache-Control") == "" {
		h.Set("Cache-Control", "no-cache, private")
	}
	for _, known := range strings.Split(r.Header.Get("If-None-Match"), ",") {
		if known = strings.TrimPrefix(strings.TrimSpace(known), "W/"); known == etag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	h.Set("Content-Type", d.contentType)
	if zipped(r.Header.Get("Accept-Encoding")) {
		h.Set("Content-Encoding", "gzip")
		h.Add("Vary", "Accept-Encoding")
		h.Set("Content-Length", strconv.Itoa(len(d.zip)))
		if r.Method != http.MethodHead {
			_, _ = w.Write(d.zip)
		}
		return
	}
	h.Set("Content-Length", strconv.Itoa(d.size))
	if r.Method == http.MethodHead {
		return
	}
	z, err := gzip.NewReader(bytes.NewReader(d.zip))
	if err == nil {
		_, _ = io.Copy(w, z)
	}
}

// zipped reports whether a client takes gzip.
func zipped(header string) bool {
	for clause := range strings.SplitSeq(strings.ToLower(header), ",") {
		coding, params, _ := strings.Cut(clause, ";")
		if strings.TrimSpace(coding) != "gzip" {
			continue
		}
		q, err := strconv.ParseFloat(strings.TrimPrefix(strings.TrimSpace(params), "q="), 64)
		return err != nil || q > 0
	}
	return false
}

// ServeHTTP answers what it knows and 404 for the rest. As upstream, the lists of groups and
// the OpenAPI documents are answered whatever the method; the others can only be read.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.Trim(r.URL.Path, "/")
	parts := strings.Split(path, "/")
	switch {
	case r.URL.Path == "/openapi/v2":
		s.openapiV2(w, r)
	case path == "openapi/v3" || strings.HasPrefix(path, "openapi/v3/") && r.URL.Path == "/"+path:
		s.openapiV3(w, r, strings.TrimPrefix(strings.TrimPrefix(path, "openapi/v3"), "/"))
	case path == "api" || path == "apis":
		if path == "api" && r.Method != http.MethodGet {
			s.notAllowed(w)
			return
		}
		if aggregated(r.Header.Get("Accept")) {
			s.aggregated(w, r, path)
			return
		}
		if path == "api" {
			s.object(w, r, &metav1.APIVersions{Versions: []string{"v1"}, ServerAddressByClientCIDRs: []metav1.ServerAddressByClientCIDR{
				{ClientCIDR: "0.0.0.0/0", ServerAddress: r.Host},
			}}, schema.GroupVersionKind{Kind: "APIVersions"}, true)
			return
		}
		list := &metav1.APIGroupList{}
		for _, g := range s.groups() {
			if g.name != "" {
				list.Groups = append(list.Groups, g.group())
			}
		}
		s.object(w, r, list, v1kind("APIGroupList"), false)
	case len(parts) == 2 && parts[0] == "apis":
		for _, g := range s.groups() {
			if g.name == parts[1] && g.name != "" {
				group := g.group()
				s.object(w, r, &group, v1kind("APIGroup"), false)
				return
			}
		}
		http.Error(w, "404 page not found", http.StatusNotFound)
	case len(parts) == 2 && parts[0] == "api":
		s.version1(w, r, "", parts[1])
	case len(parts) == 3 && parts[0] == "apis":
		s.version1(w, r, parts[1], parts[2])
	default:
		http.Error(w, "404 page not found", http.StatusNotFound)
	}
}

func v1kind(kind string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Version: "v1", Kind: kind}
}

const media = codec.MediaJSON + ", " + codec.MediaYAML + ", " + codec.MediaProtobuf

// object answers with a document of the plain kind; these are small and made each time. named: only clients
// that name a media type of it, or any at all, get it.
func (s *Server) object(w http.ResponseWriter, r *http.Request, obj runtime.Object, gvk schema.GroupVersionKind, named bool) {
	if named && !codec.Names(r.Header.Get("Accept"), codec.MediaJSON, codec.MediaYAML, codec.MediaProtobuf) {
		s.status(w, http.StatusNotAcceptable, metav1.StatusReasonNotAcceptable, "406: Not Acceptable\n\nAvailable representations: "+media, &metav1.StatusDetails{})
		return
	}
	f, ok := codec.Negotiate(codec.Unformed(r.Header.Get("Accept")), false, codec.WantsPretty(r.URL.Query().Get("pretty"), r.UserAgent()))
	if !ok {
		s.status(w, http.StatusNotAcceptable, metav1.StatusReasonNotAcceptable, "only the following media types are accepted: "+media, nil)
		return
	}
	body, err := codec.AppendObject(nil, obj, gvk, f)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", f.ContentType())
	w.Header().Set("Cache-Control", "no-cache, private")
	_, _ = w.Write(body)
}

func (s *Server) notAllowed(w http.ResponseWriter) {
	s.status(w, http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed,
		"the server does not allow this method on the requested resource", &metav1.StatusDetails{})
}

func (s *Server) knows(group string) bool {
	return slices.ContainsFunc(s.reg.All(), func(row *resources.Row) bool { return row.Group == group })
}

func (s *Server) status(w http.ResponseWriter, code int32, reason metav1.StatusReason, text string, details *metav1.StatusDetails) {
	st := &metav1.Status{Status: metav1.StatusFailure, Reason: reason, Code: code, Message: text, Details: details}
	body, err := codec.AppendObject(nil, st, v1kind("Status"), codec.Format{})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", codec.MediaJSON)
	w.WriteHeader(int(code))
	_, _ = w.Write(body) // the client has gone: nobody to tell
}

func (s *Server) version1(w http.ResponseWriter, r *http.Request, group, version string) {
	custom := false
	list := &metav1.APIResourceList{GroupVersion: schema.GroupVersion{Group: group, Version: version}.String()}
	for _, row := range s.reg.All() {
		if row.Group == group && row.Version == version {
			list.APIResources = append(list.APIResources, apiResources(row)...)
			custom = row.Custom != nil
		}
	}
	if len(list.APIResources) == 0 {
		if !s.knows(group) {
			http.Error(w, "404 page not found", http.StatusNotFound)
			return
		}
		s.status(w, http.StatusNotFound, metav1.StatusReasonNotFound, "the server could not find the requested resource", &metav1.StatusDetails{})
		return
	}
	if r.Method != http.MethodGet {
		s.notAllowed(w)
		return
	}
	gvk := v1kind("APIResourceList")
	if group == "" {
		gvk.Version = "" // the first API had none, and clients may compare
	}
	s.object(w, r, list, gvk, !custom)
}

// aggregated reports whether the client accepts apidiscovery.k8s.io/v2 in place of the documents
// one by one, in whatever order it names them.
//
// Source: Kubernetes documentation, "The Kubernetes API: aggregated discovery".
func aggregated(accept string) bool {
	for _, clause := range strings.Split(accept, ",") {
		media, p, err := mime.ParseMediaType(strings.TrimSpace(clause))
		if err != nil {
			continue
		}
		if media == codec.MediaJSON && p["g"] == apidiscovery.GroupName && p["as"] == "APIGroupDiscoveryList" && p["v"] == "v2" {
			return true
		}
	}
	return false
}

func (s *Server) aggregated(w http.ResponseWriter, r *http.Request, path string) {
	d, err := s.doc("aggregated/"+path, func() ([]byte, string, error) {
		list := apidiscovery.APIGroupDiscoveryList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupDiscoveryList", APIVersion: "apidiscovery.k8s.io/v2"}}
		for _, g := range s.groups() {
			if (path == "api") == (g.name == "") {
				list.Items = append(list.Items, g.discovery())
			}
		}
		raw, err := json.Marshal(&list)
		return append(raw, '\n'), "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", err
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Cache-Control", "public")
	d.serve(w, r)
}
