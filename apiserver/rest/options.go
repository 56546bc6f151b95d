package rest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	listvalidation "k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/watchcache"
)

func invalidOptions(kind string, errs field.ErrorList) error {
	if len(errs) == 0 {
		return nil
	}
	return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: kind}, "", errs)
}

func boolParam(q url.Values, name string) (*bool, error) {
	if !q.Has(name) {
		return nil, nil
	}
	v := q.Get(name)
	b := v == "" || truthy(v) // "?x" alone means true, as in upstream
	return &b, nil
}

func intParam(q url.Values, name string) (*int64, error) {
	if !q.Has(name) {
		return nil, nil
	}
	n, err := strconv.ParseInt(q.Get(name), 10, 64)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return &n, nil
}

// writeParams are the query parameters that create, update and patch share.
type writeParams struct {
	dryRun          []string
	fieldManager    string
	fieldValidation string
	force           *bool
}

func (c *Call) writeParams() (p writeParams) {
	p.dryRun = c.Query["dryRun"]
	p.fieldManager = c.Query.Get("fieldManager")
	p.fieldValidation = c.Query.Get("fieldValidation")
	p.force, _ = boolParam(c.Query, "force")
	return p
}

func (p writeParams) create() *metav1.CreateOptions {
	return &metav1.CreateOptions{DryRun: p.dryRun, FieldManager: p.fieldManager, FieldValidation: p.fieldValidation}
}

func (p writeParams) update() *metav1.UpdateOptions {
	return &metav1.UpdateOptions{DryRun: p.dryRun, FieldManager: p.fieldManager, FieldValidation: p.fieldValidation}
}

func (p writeParams) patch() *metav1.PatchOptions {
	return &metav1.PatchOptions{DryRun: p.dryRun, FieldManager: p.fieldManager, FieldValidation: p.fieldValidation, Force: p.force}
}

func (p writeParams) checkCreate() error {
	return invalidOptions("CreateOptions", metavalidation.ValidateCreateOptions(p.create()))
}

func (p writeParams) checkUpdate() error {
	return invalidOptions("UpdateOptions", metavalidation.ValidateUpdateOptions(p.update()))
}

func (p writeParams) checkPatch(t types.PatchType) error {
	return invalidOptions("PatchOptions", metavalidation.ValidatePatchOptions(p.patch(), t))
}

// validation is the field validation in force; the default is to warn.
func (p writeParams) validation() string {
	if p.fieldValidation == "" {
		return metav1.FieldValidationWarn
	}
	return p.fieldValidation
}

// manager is who the write is booked to: the parameter, else the user agent up to the first slash.
func (c *Call) manager(p writeParams) string {
	if p.fieldManager != "" {
		return p.fieldManager
	}
	name, _, _ := strings.Cut(c.R.UserAgent(), "/")
	var b strings.Builder
	for _, r := range name {
		if !unicode.IsPrint(r) {
			continue
		}
		if b.Len()+utf8.RuneLen(r) > metavalidation.FieldManagerMaxLength {
			break
		}
		b.WriteRune(r)
	}
	if b.Len() == 0 {
		return "unknown"
	}
	return b.String()
}

// listParams are the parameters of list, watch and deletecollection.
type listParams struct {
	internalversion.ListOptions
	timeout time.Duration // 0: none was given
}

// listParams reads and checks them; selectors are already in storage terms.
func (c *Call) listParams(watch bool) (*listParams, error) {
	q := c.Query
	p := &listParams{}
	p.Watch = watch
	p.ResourceVersion = q.Get("resourceVersion")
	p.ResourceVersionMatch = metav1.ResourceVersionMatch(q.Get("resourceVersionMatch"))
	p.Continue = q.Get("continue")
	if b, _ := boolParam(q, "allowWatchBookmarks"); b != nil {
		p.AllowWatchBookmarks = *b
	}
	p.SendInitialEvents, _ = boolParam(q, "sendInitialEvents")
	limit, err := intParam(q, "limit")
	if err != nil {
		return nil, err
	}
	if limit != nil {
		p.Limit = max(*limit, 0)
	}
	seconds, err := intParam(q, "timeoutSeconds")
	if err != nil {
		return nil, err
	}
	if seconds != nil && *seconds > 0 {
		p.timeout = time.Duration(min(*seconds, 1<<31)) * time.Second
	}
	if s := q.Get("labelSelector"); s != "" {
		if p.LabelSelector, err = labels.Parse(s); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
	}
	if s := q.Get("fieldSelector"); s != "" {
		if p.FieldSelector, err = fields.ParseSelector(s); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
	}
	// A watch without a place to start begins with the current state, and says where that ends.
	if watch && p.SendInitialEvents == nil && p.ResourceVersionMatch == "" && (p.ResourceVersion == "" || p.ResourceVersion == "0") {
		yes := true
		p.SendInitialEvents, p.ResourceVersionMatch = &yes, metav1.ResourceVersionMatchNotOlderThan
	}
	if err := invalidOptions("ListOptions", listvalidation.ValidateListOptions(&p.ListOptions, true)); err != nil {
		return nil, err
	}
	if p.ResourceVersion != "" && (watch || p.Continue == "") { // beside a token it is refused whatever it says
		if _, err := parseRev(p.ResourceVersion); err != nil {
			if watch {
				err = malformedRev(err)
			}
			return nil, err
		}
	}
	return p, nil
}

// malformedRev is how upstream answers where it reads the revision late, for a get and a watch.
func malformedRev(err error) error {
	return statusError(http.StatusInternalServerError, "", strings.TrimPrefix(err.Error(), badRevision))
}

const badRevision = "invalid resource version: "

// parseRev reads a resourceVersion that a client has sent.
func parseRev(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		fault := field.Invalid(field.NewPath("resourceVersion"), s, err.Error())
		return 0, apierrors.NewBadRequest(badRevision + fault.Error())
	}
	return int64(min(n, math.MaxInt64)), nil
}

// selection is what the path and the selectors ask for.
func (c *Call) selection(p *listParams) (watchcache.Selection, error) {
	st := c.Row.Storage()
	sel := watchcache.Selection{Prefix: st.Prefix, Namespaced: st.Namespaced, Labels: p.LabelSelector}
	if c.Row.Namespaced {
		sel.Namespace = c.Namespace
	}
	if c.Info.Named() {
		sel.Name = c.Info.Name
	}
	if p.FieldSelector == nil || p.FieldSelector.Empty() {
		return sel, nil
	}
	f, err := p.FieldSelector.Transform(func(label, value string) (string, string, error) {
		if stored, ok := c.Row.FieldAlias[label]; ok {
			return stored, value, nil
		}
		return label, value, knownField(c.Row, label)
	})
	if err != nil {
		return sel, apierrors.NewBadRequest(err.Error())
	}
	// Names that the selectors pin let the cache go straight to the object or its index.
	if name, ok := f.RequiresExactMatch("metadata.name"); ok && sel.Name == "" {
		sel.Name = name
	}
	if ns, ok := f.RequiresExactMatch("metadata.namespace"); ok && sel.Namespace == "" && c.Row.Namespaced {
		sel.Namespace = ns
	}
	sel.Fields = f
	if c.Row.Custom != nil && c.Row != st {
		sel.Row = c.Row
	}
	return sel, nil
}

func knownField(row *resources.Row, label string) error {
	// Kinds with fields of their own name all of theirs, and one without a namespace has none to select by.
	if label == "metadata.name" || label == "metadata.namespace" && (row.Namespaced || row.Custom != nil || len(row.FieldNames) == 0) {
		return nil
	}
	for _, n := range row.FieldNames {
		if n == label {
			return nil
		}
	}
	if len(row.FieldNames) == 0 && row.Custom == nil {
		return fmt.Errorf("%q is not a known field selector: only %q, %q", label, "metadata.name", "metadata.namespace")
	}
	if row.FieldRefusal != "" {
		return fmt.Errorf(row.FieldRefusal, label)
	}
	return fmt.Errorf("field label not supported: %s", label)
}

// watchTime is how long a watch lasts without timeoutSeconds: between half an hour and
// an hour, so that clients do not all come back at once.
func watchTime() time.Duration {
	const least = 30 * time.Minute
	return least + rand.N(least)
}
