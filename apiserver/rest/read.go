package rest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/watchcache"
)

// revisionWait is how long a request waits for a resourceVersion that the server has
// not reached, as upstream.
const revisionWait = 3 * time.Second

// reach waits until the cache is at rev; a revision from the future is 504 with a cause that clients know.
func (o *Objects) reach(ctx context.Context, rev int64) error {
	if o.cache.Rev() >= rev {
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, revisionWait)
	defer cancel()
	if err := o.cache.WaitFor(wait, rev); err == nil || ctx.Err() != nil {
		return err
	}
	e := apierrors.NewTimeoutError(fmt.Sprintf("Too large resource version: %d, current: %d", rev, o.cache.Rev()), 1)
	e.ErrStatus.Details.Causes = []metav1.StatusCause{{
		Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version",
	}}
	return e
}

// settle makes the cache as new as resourceVersion asks: unset is newest, "0" is
// anything, a number is that or newer.
func (o *Objects) settle(ctx context.Context, rv string) error {
	switch rv {
	case "":
		_, err := o.cache.Fresh(ctx)
		return err
	case "0":
		return nil
	}
	n, err := parseRev(rv)
	if err != nil {
		return err
	}
	return o.reach(ctx, n)
}

// settle is Objects.settle for the kind of the call.
func (c *Call) settle(rv string) error {
	if rv == "0" {
		return nil
	}
	began := time.Now()
	err := c.Objects.settle(c.R.Context(), rv)
	c.Server.cfg.Metrics.settled(c.Row.GR(), c.Info.Verb == "list", rv == "", time.Since(began), err)
	return err
}

func (c *Call) get() {
	if _, err := parseRev(c.Query.Get("resourceVersion")); err != nil {
		c.fail(malformedRev(err))
		return
	}
	if look := c.Server.cfg.Observed[c.Row.GR()]; look != nil {
		c.getObserved(look)
		return
	}
	if err := c.settle(c.Query.Get("resourceVersion")); err != nil {
		c.fail(err)
		return
	}
	it := c.Objects.item(c.Row, c.Namespace, c.Name)
	if it == nil {
		c.fail(apierrors.NewNotFound(c.Row.GR(), c.Name))
		return
	}
	c.respond(http.StatusOK, it)
}

// token says where a list goes on: after a key, in the state of a revision. Below 0 that is the
// newest state, for clients that prefer an inconsistent list to none.
//
// Tokens are written as upstream writes them: servers of both kinds go on with each other's lists while a cluster changes hands.
type token struct {
	APIVersion string `json:"v"`
	Rev        int64  `json:"rv"`
	Start      string `json:"start"` // key below what was listed, "/ns/name" or "/name", and a zero byte
}

const tokenVersion = "meta.k8s.io/v1"

func (t token) String() string {
	t.APIVersion = tokenVersion
	raw, _ := json.Marshal(t)
	return base64.RawURLEncoding.EncodeToString(raw)
}

func parseToken(s string) (t token, err error) {
	bad := func(text string) (token, error) {
		return token{}, apierrors.NewBadRequest("invalid continue token: continue key is not valid: " + text)
	}
	raw, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return bad(err.Error())
	}
	if err := json.Unmarshal(raw, &t); err != nil {
		return bad(err.Error())
	}
	switch {
	case t.APIVersion != tokenVersion:
		return bad("server does not recognize this encoded version " + t.APIVersion)
	case t.Rev == 0:
		return bad(fmt.Sprintf("incorrect encoded start resourceVersion (version %s)", tokenVersion))
	case t.Start == "":
		return bad(fmt.Sprintf("encoded start key empty (version %s)", tokenVersion))
	}
	start := t.Start
	if !strings.HasPrefix(start, "/") {
		start = "/" + start
	}
	if path.Clean(start) != start { // it would leave what is listed
		return bad(t.Start)
	}
	t.Start = start
	return t, nil
}

// listed is the key above all that a list shows.
func (c *Call) listed() string {
	prefix := c.Row.Storage().Prefix
	if !c.Row.Namespaced || c.Namespace == "" {
		return prefix
	}
	return prefix + "/" + c.Namespace
}

const (
	expiredList     = "The resourceVersion for the provided list is too old."
	expiredContinue = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list."
)

// stateFor picks the snapshot that a list is read from, and the key that it follows.
//
// Source: Kubernetes API concepts, "Resource versions: semantics for get and list".
func (c *Call) stateFor(p *listParams) (s *watchcache.Snapshot, after string, err error) {
	ctx, o := c.R.Context(), c.Objects
	if p.Continue != "" {
		t, err := parseToken(p.Continue)
		if err != nil {
			return nil, "", err
		}
		if p.ResourceVersion != "" && p.ResourceVersion != "0" {
			return nil, "", apierrors.NewBadRequest("specifying resource version is not allowed when using continue")
		}
		after = c.listed() + strings.TrimSuffix(t.Start, "\x00")
		if t.Rev < 0 {
			if err := c.settle(""); err != nil {
				return nil, "", err
			}
			return o.cache.Snapshot(), after, nil
		}
		if err := o.reach(ctx, t.Rev); err != nil {
			return nil, "", err
		}
		s, err = o.cache.SnapshotAt(t.Rev)
		if errors.Is(err, watchcache.ErrTooOld) {
			e := apierrors.NewResourceExpired(expiredContinue)
			e.ErrStatus.ListMeta.Continue = token{Rev: -1, Start: t.Start}.String()
			return nil, "", e
		}
		return s, after, err
	}
	n, err := parseRev(p.ResourceVersion)
	if err != nil {
		return nil, "", err
	}
	exact := p.ResourceVersionMatch == metav1.ResourceVersionMatchExact ||
		p.ResourceVersionMatch == "" && n > 0 && p.Limit > 0
	if err := c.settle(p.ResourceVersion); err != nil {
		return nil, "", err
	}
	if !exact {
		return o.cache.Snapshot(), "", nil
	}
	s, err = o.cache.SnapshotAt(n)
	if errors.Is(err, watchcache.ErrTooOld) {
		return nil, "", apierrors.NewResourceExpired(expiredList)
	}
	return s, "", err
}

func (c *Call) list() {
	p, err := c.listParams(false)
	if err != nil {
		c.fail(err)
		return
	}
	sel, err := c.selection(p)
	if err != nil {
		c.fail(err)
		return
	}
	if look := c.Server.cfg.Observed[c.Row.GR()]; look != nil {
		c.listObserved(look, sel)
		return
	}
	items, meta, err := c.page(p, sel)
	if err != nil {
		c.fail(err)
		return
	}
	c.respondList(items, meta)
}

// page is what a list with these parameters shows, and its metadata: the token of the next page, when there is one.
func (c *Call) page(p *listParams, sel watchcache.Selection) (items []*watchcache.Item, meta metav1.ListMeta, err error) {
	s, after, err := c.stateFor(p)
	if err != nil {
		return nil, meta, err
	}
	if err := ahead(c.Row, s, sel); err != nil {
		return nil, meta, err
	}
	limit := p.Limit
	if p.ResourceVersion == "0" { // any state will do, and is at hand as a whole
		limit = 0
	}
	more := false
	var looked int64
	sel.Looked = &looked
	if err := s.Scan(sel, after, func(it *watchcache.Item) bool {
		if limit > 0 && int64(len(items)) == limit {
			more = true
			return false
		}
		items = append(items, it)
		return true
	}); err != nil {
		return nil, meta, err
	}
	c.Server.cfg.Metrics.listed(c.Row.GR(), sel, looked, len(items))
	meta.ResourceVersion = strconv.FormatInt(s.Rev(), 10)
	if more {
		last := items[len(items)-1].Key
		meta.Continue = token{Rev: s.Rev(), Start: strings.TrimPrefix(last, c.listed()) + "\x00"}.String()
		if (sel.Labels == nil || sel.Labels.Empty()) && (sel.Fields == nil || sel.Fields.Empty()) {
			left := int64(s.Count(sel.Prefix, sel.Namespace, last))
			meta.RemainingItemCount = &left
		}
		c.Objects.cache.Keep(s)
	}
	return items, meta, nil
}

// ahead has everything converted, in few calls, that must be looked into before it is known what
// a selection by fields of another version sees.
func ahead(row *resources.Row, s *watchcache.Snapshot, sel watchcache.Selection) error {
	if sel.Row == nil {
		return nil
	}
	sel.Fields = nil
	var all []*watchcache.Item
	if err := s.Scan(sel, "", func(it *watchcache.Item) bool {
		all = append(all, it)
		return true
	}); err != nil {
		return err
	}
	return watchcache.Ahead(row, all)
}

// respondList answers with a list in the form that was negotiated.
func (c *Call) respondList(items []*watchcache.Item, meta metav1.ListMeta) {
	if c.format.As == "PartialObjectMetadata" {
		c.fail(c.misshapen("a list", c.Row.ListKind))
		return
	}
	row := c.shown()
	if err := watchcache.Ahead(row, items); err != nil {
		c.fail(err)
		return
	}
	if row.Storage() != row {
		views := make([]*watchcache.Item, len(items))
		for i, it := range items {
			v, err := it.For(row)
			if err != nil {
				c.fail(err)
				return
			}
			views[i] = v
		}
		items = views
	}
	out := newBody(c.W, c.R, http.StatusOK, c.format.ContentType())
	var err error
	switch c.format.As {
	case "":
		err = codec.WriteList(out, c.Row, items, meta, c.format)
	case "Table":
		err = c.writeTable(out, items, meta)
	default:
		err = c.writeMetadataList(out, items, meta)
	}
	if err != nil {
		if !out.started && out.zip == nil {
			c.fail(err)
			return
		}
		// The status line is out: only breaking the connection tells the client.
		panic(http.ErrAbortHandler)
	}
	_ = out.Close()
}
