package rest

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/keelson/keelson/apiserver/audit"
	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/patch"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/store"
	"github.com/keelson/keelson/apiserver/watchcache"
)

var statusKind = schema.GroupVersionKind{Version: "v1", Kind: "Status"}

const (
	accepted = "application/json, application/yaml, application/vnd.kubernetes.protobuf"
	// acceptedStream are the media types of a watch.
	acceptedStream = "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch"
)

func notAcceptable(list string) error {
	return statusError(http.StatusNotAcceptable, metav1.StatusReasonNotAcceptable, "only the following media types are accepted: "+list)
}

// unacceptable is the 406 of a built-in kind: in one wording when no form of the kind has
// a media type that the client names, and in another when only the parameters do not fit.
func (c *Call) unacceptable() error {
	if named(c.R) {
		return notAcceptable(accepted)
	}
	list := accepted
	if c.Info.Verb == "list" || c.Info.Verb == "watch" {
		list += ", " + acceptedStream
	}
	e := statusError(http.StatusNotAcceptable, metav1.StatusReasonNotAcceptable, "406: Not Acceptable\n\nAvailable representations: "+list)
	e.ErrStatus.Details = &metav1.StatusDetails{}
	return e
}

// named: the client names a media type in which built-in kinds are served.
func named(r *http.Request) bool {
	return codec.Names(r.Header.Get("Accept"), codec.MediaJSON, codec.MediaYAML, codec.MediaProtobuf)
}

func unsupportedMedia(list string) error {
	return statusError(http.StatusUnsupportedMediaType, metav1.StatusReasonUnsupportedMediaType,
		"the body of the request was in an unknown format - accepted media types include: "+list)
}

func statusError(code int32, reason metav1.StatusReason, message string) *apierrors.StatusError {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: code, Reason: reason, Message: message,
	}}
}

// Status is the answer for an error: the one place where errors become metav1.Status.
func Status(err error) *metav1.Status {
	var as apierrors.APIStatus
	if errors.As(err, &as) {
		st := as.Status()
		if st.Status == "" {
			st.Status = metav1.StatusFailure
		}
		if st.Code == 0 {
			st.Code = http.StatusInternalServerError
		}
		return &st
	}
	st := &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Message: err.Error()}
	var bad *patch.BadError
	var odd *patch.UnprocessableError
	var big *patch.TooLargeError
	var held *patch.ConflictError
	switch {
	case errors.As(err, &held):
		s := apierrors.NewApplyConflict(held.Causes, held.Message).Status()
		return &s
	case errors.As(err, &bad):
		st.Code, st.Reason = http.StatusBadRequest, metav1.StatusReasonBadRequest
	case errors.As(err, &odd):
		st.Code, st.Reason = http.StatusUnprocessableEntity, metav1.StatusReasonInvalid
		st.Message = "the server rejected our request due to an error in our request"
		st.Details = &metav1.StatusDetails{}
	case errors.As(err, &big), errors.Is(err, codec.ErrTooLarge):
		s := apierrors.NewRequestEntityTooLargeError(err.Error()).Status()
		return &s
	case errors.Is(err, codec.ErrMediaType):
		st.Code, st.Reason = http.StatusUnsupportedMediaType, metav1.StatusReasonUnsupportedMediaType
		st.Message = unsupportedMedia(accepted).Error()
	case errors.Is(err, codec.ErrNotAcceptable):
		st.Code, st.Reason = http.StatusNotAcceptable, metav1.StatusReasonNotAcceptable
	case errors.Is(err, watchcache.ErrTooOld), errors.Is(err, watchcache.ErrSlow):
		s := apierrors.NewResourceExpired(err.Error()).Status()
		return &s
	case errors.Is(err, store.ErrConflict):
		st.Code, st.Reason = http.StatusConflict, metav1.StatusReasonConflict
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		s := apierrors.NewTimeoutError("the server was unable to return a response in the time allotted, but may still be processing the request", 0).Status()
		return &s
	}
	return st
}

func wantsPretty(r *http.Request) bool {
	return codec.WantsPretty(query(r).Get("pretty"), r.UserAgent())
}

// WriteError answers with the Status of err in a form that the client accepts. A Status is never served
// as something else: who accepts nothing but a Table or metadata gets JSON to be read by people, as
// whoever accepts nothing at all.
func WriteError(w http.ResponseWriter, r *http.Request, err error) {
	f, ok := codec.Negotiate(codec.Unformed(r.Header.Get("Accept")), false, wantsPretty(r))
	if !ok {
		f = codec.Format{Pretty: true}
	}
	st := Status(err)
	audit.From(r.Context()).Failed(st)
	if st.Details != nil && st.Details.RetryAfterSeconds > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(st.Details.RetryAfterSeconds)))
	}
	writeObject(w, r, int(st.Code), st, statusKind, f)
}

// WriteObject answers with any object that is not a cached item. gvk is what it says it is.
func WriteObject(w http.ResponseWriter, r *http.Request, code int, obj runtime.Object, gvk schema.GroupVersionKind) {
	f, ok := codec.Negotiate(r.Header.Get("Accept"), false, wantsPretty(r))
	if !ok {
		WriteError(w, r, notAcceptable(accepted))
		return
	}
	f.As = ""
	writeObject(w, r, code, obj, gvk, f)
}

func writeObject(w http.ResponseWriter, r *http.Request, code int, obj runtime.Object, gvk schema.GroupVersionKind, f codec.Format) {
	body, err := codec.AppendObject(nil, obj, gvk, f)
	if err != nil && f.Kind == codec.Protobuf { // kinds without a protobuf form
		f = codec.Format{}
		body, err = codec.AppendObject(nil, obj, gvk, f)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeBody(w, r, code, f.ContentType(), body)
}

func writeBody(w http.ResponseWriter, r *http.Request, code int, contentType string, body []byte) {
	out := newBody(w, r, code, contentType)
	if len(body) < gzipFrom { // no more comes, so that nothing need be held back
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		out.gzip = false
	}
	_, _ = out.Write(body)
	_ = out.Close()
}

// gzipFrom is the size from which answers are compressed for clients that accept it,
// as upstream has it: below it the time is not worth the bytes.
const gzipFrom = 128 << 10

var gzips = sync.Pool{New: func() any { w, _ := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed); return w }}

// body is a response that is compressed when it turns out to be large. The first
// gzipFrom bytes are held back until that is known.
type body struct {
	w           http.ResponseWriter
	code        int
	contentType string
	gzip        bool // the client accepts it
	held        []byte
	zip         *gzip.Writer
	started     bool
}

func newBody(w http.ResponseWriter, r *http.Request, code int, contentType string) *body {
	return &body{w: w, code: code, contentType: contentType, gzip: acceptsGzip(r)}
}

func acceptsGzip(r *http.Request) bool {
	for _, v := range r.Header.Values("Accept-Encoding") {
		for _, e := range strings.Split(v, ",") {
			name, q, _ := strings.Cut(strings.TrimSpace(e), ";")
			if strings.EqualFold(strings.TrimSpace(name), "gzip") && !strings.HasPrefix(strings.ReplaceAll(q, " ", ""), "q=0.0") &&
				strings.ReplaceAll(q, " ", "") != "q=0" {
				return true
			}
		}
	}
	return false
}

func (b *body) start() {
	if b.started {
		return
	}
	b.started = true
	h := b.w.Header()
	h.Set("Content-Type", b.contentType)
	if h.Get("Cache-Control") == "" {
		h.Set("Cache-Control", "no-cache, private")
	}
	if b.zip != nil {
		h.Set("Content-Encoding", "gzip")
		h.Add("Vary", "Accept-Encoding")
	}
	b.w.WriteHeader(b.code)
}

func (b *body) Write(p []byte) (int, error) {
	switch {
	case b.zip != nil:
		return b.zip.Write(p)
	case !b.gzip:
		b.start()
		return b.w.Write(p)
	}
	if len(b.held)+len(p) < gzipFrom {
		b.held = append(b.held, p...)
		return len(p), nil
	}
	b.zip = gzips.Get().(*gzip.Writer)
	b.zip.Reset(b.w)
	b.start()
	if _, err := b.zip.Write(b.held); err != nil {
		return 0, err
	}
	b.held = nil
	return b.zip.Write(p)
}

// Close sends what is held back. It does not close the connection.
func (b *body) Close() error {
	if b.zip != nil {
		err := b.zip.Close()
		gzips.Put(b.zip)
		b.zip = nil
		return err
	}
	if !b.started {
		b.w.Header().Set("Content-Length", strconv.Itoa(len(b.held)))
	}
	b.start()
	if len(b.held) == 0 {
		return nil
	}
	_, err := b.w.Write(b.held)
	return err
}

// warnings are the Warning headers of one answer, each text once.
type warnings struct {
	w    http.ResponseWriter
	mu   sync.Mutex
	seen map[string]bool
	size int
}

// maxWarnings bounds the bytes of all Warning headers of an answer.
const maxWarnings = 4 << 10

func (s *warnings) add(text string) {
	if text == "" || !utf8.ValidString(text) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen[text] || s.size+len(text) > maxWarnings {
		return
	}
	if s.seen == nil {
		s.seen = map[string]bool{}
	}
	s.seen[text] = true
	s.size += len(text)
	if h, err := utilnet.NewWarningHeader(299, "-", text); err == nil {
		s.w.Header().Add("Warning", h)
	}
}

// respond answers with an item as c's row serves it.
func (c *Call) respond(code int, it *watchcache.Item) {
	v, err := it.For(c.shown())
	if err != nil {
		c.fail(err)
		return
	}
	if c.format.As == "PartialObjectMetadataList" {
		c.fail(c.misshapen("not a list", c.Row.Kind))
		return
	}
	if c.format.As != "" {
		c.respondAs(code, v)
		return
	}
	b := borrow()
	defer b.giveBack()
	if b.b, err = codec.AppendSingle(b.b, c.Row, v, c.format); err != nil {
		c.fail(err)
		return
	}
	writeBody(c.W, c.R, code, c.format.ContentType(), b.b)
}

// misshapen is the 406 of a client that wants metadata of one where there are many, or the other way.
func (c *Call) misshapen(is, kind string) error {
	return statusError(http.StatusNotAcceptable, metav1.StatusReasonNotAcceptable,
		fmt.Sprintf("you requested %s, but the requested object is %s (%s)", c.format.As, is, kind))
}

func (c *Call) fail(err error) { WriteError(c.W, c.R, err) }

// summary shows the beginning of a body: as text if it is an object, else as digits.
func summary(body []byte) string {
	const limit = 30
	more := ""
	text := len(body) > 0 && body[0] == '{'
	if len(body) > limit {
		body, more = body[:limit], " ..."
	}
	switch {
	case len(body) == 0:
		return "<empty>"
	case text:
		return string(body) + more
	}
	return fmt.Sprintf("%x", body) + more
}

// decodeError is what upstream says about a body that is not what the path expects.
func decodeError(row *resources.Row, gvk schema.GroupVersionKind, body []byte, err error) error {
	if errors.Is(err, codec.ErrMediaType) || errors.Is(err, codec.ErrTooLarge) {
		return err
	}
	if as := apierrors.APIStatus(nil); errors.As(err, &as) {
		return err
	}
	if gvk.Kind != "" {
		return apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: %v", gvk.Kind, gvk.Version, row.Kind, err))
	}
	return apierrors.NewBadRequest(fmt.Sprintf("the object provided is unrecognized (must be of type %s): %v (%s)", row.Kind, err, summary(body)))
}
