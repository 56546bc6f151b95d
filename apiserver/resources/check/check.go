// Package check is the vocabulary of validation rules: a list of faults that is
// filled step by step, and the comparisons that rules of many kinds share.
//
// Messages are those that clients of Kubernetes see, as they are part of what
// users read and scripts match.
package check

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	pathvalidation "k8s.io/apimachinery/pkg/api/validation/path"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"
)

const (
	Negative    = "must be greater than or equal to 0"
	NotPositive = "must be greater than zero"
	NotInteger  = "must be an integer"
	Immutable   = "field is immutable"
)

// Faults collects what is wrong with one object. The zero value is empty.
type Faults struct{ list field.ErrorList }

// List returns what has been collected.
func (f *Faults) List() field.ErrorList { return f.list }

// Empty reports whether nothing has been found.
func (f *Faults) Empty() bool { return len(f.list) == 0 }

// Add takes over faults found elsewhere.
func (f *Faults) Add(l field.ErrorList) { f.list = append(f.list, l...) }

func (f *Faults) Required(p *field.Path, why string) { f.list = append(f.list, field.Required(p, why)) }
func (f *Faults) Invalid(p *field.Path, v any, why string) {
	f.list = append(f.list, field.Invalid(p, v, why))
}
func (f *Faults) Forbidden(p *field.Path, why string) {
	f.list = append(f.list, field.Forbidden(p, why))
}
func (f *Faults) Duplicate(p *field.Path, v any) { f.list = append(f.list, field.Duplicate(p, v)) }
func (f *Faults) NotFound(p *field.Path, v any)  { f.list = append(f.list, field.NotFound(p, v)) }
func (f *Faults) TooLong(p *field.Path, v any, max int) {
	f.list = append(f.list, field.TooLong(p, v, max))
}
func (f *Faults) TooMany(p *field.Path, actual, max int) {
	f.list = append(f.list, field.TooMany(p, actual, max))
}
func (f *Faults) Internal(p *field.Path, err error) {
	f.list = append(f.list, field.InternalError(p, err))
}

// Each adds one Invalid for every message.
func (f *Faults) Each(p *field.Path, v any, msgs []string) {
	for _, m := range msgs {
		f.Invalid(p, v, m)
	}
}

// Object asks of embedded content that it is a JSON object of at most max bytes; 0 is no bound. It shows
// nothing of it.
func (f *Faults) Object(p *field.Path, raw []byte, max int) {
	if max > 0 && len(raw) > max {
		f.TooLong(p, "", max)
		return
	}
	var v any
	err := json.Unmarshal(raw, &v)
	_, object := v.(map[string]any)
	switch {
	case len(raw) == 0 || err == nil && v == nil:
		f.Required(p, "")
	case err != nil:
		f.Invalid(p, "<value omitted>", fmt.Sprintf("error parsing data as JSON: %v", err))
	case !object:
		f.Invalid(p, "<value omitted>", "must be a valid JSON object")
	}
}

// Need reports an empty string as Required and returns whether there is a value.
func (f *Faults) Need(p *field.Path, v string) bool {
	if v == "" {
		f.Required(p, "")
	}
	return v != ""
}

// NeedName demands a value that rule accepts.
func (f *Faults) NeedName(p *field.Path, v string, rule func(string) []string) {
	if f.Need(p, v) {
		f.Each(p, v, rule(v))
	}
}

// Same reports a change of a field that may never change.
func (f *Faults) Same(p *field.Path, now, was any) {
	if equality.Semantic.DeepEqual(now, was) {
		return
	}
	if k := reflect.Indirect(reflect.ValueOf(now)).Kind(); k == reflect.Struct || k == reflect.Slice {
		now = Shown(now)
	}
	f.Invalid(p, now, Immutable)
}

// Number is any integer type of the API.
type Number interface{ ~int | ~int32 | ~int64 }

// AtLeastZero reports a negative number.
func AtLeastZero[N Number](f *Faults, p *field.Path, n N) {
	f.Add(apivalidation.ValidateNonnegativeField(int64(n), p))
}

// AtLeastZeroPtr is AtLeastZero for an optional number.
func AtLeastZeroPtr[N Number](f *Faults, p *field.Path, n *N) {
	if n != nil {
		AtLeastZero(f, p, *n)
	}
}

// Positive reports a number below one.
func Positive[N Number](f *Faults, p *field.Path, n N) {
	if n <= 0 {
		f.Invalid(p, int64(n), NotPositive)
	}
}

// OneOf reports an empty value as Required and an unknown one as NotSupported.
func OneOf[S ~string](f *Faults, p *field.Path, v S, known ...S) {
	if v == "" {
		f.Required(p, "")
		return
	}
	AmongOrEmpty(f, p, v, known...)
}

// Among reports a value that is not known, the empty one too, as NotSupported.
func Among[S ~string](f *Faults, p *field.Path, v S, known ...S) {
	if slices.Contains(known, v) {
		return
	}
	sorted := slices.Clone(known)
	slices.Sort(sorted)
	f.list = append(f.list, field.NotSupported(p, v, sorted))
}

// Listed is Among with the values in the given order, which some messages have always had.
func Listed[S ~string](f *Faults, p *field.Path, v S, known ...S) {
	if !slices.Contains(known, v) {
		f.list = append(f.list, field.NotSupported(p, v, known))
	}
}

// AmongOrEmpty is Among for a value that may be missing.
func AmongOrEmpty[S ~string](f *Faults, p *field.Path, v S, known ...S) {
	if v != "" {
		Among(f, p, v, known...)
	}
}

// AmongPtr is Among for an optional value.
func AmongPtr[S ~string](f *Faults, p *field.Path, v *S, known ...S) {
	if v != nil {
		Among(f, p, *v, known...)
	}
}

// Quantity reports a negative quantity.
func (f *Faults) Quantity(p *field.Path, q resource.Quantity) {
	if q.Sign() < 0 {
		f.Invalid(p, q.String(), Negative)
	}
}

// Port reports a port outside 1-65535.
func (f *Faults) Port(p *field.Path, n int32) { f.Each(p, n, validation.IsValidPortNum(int(n))) }

// PortOrName accepts a port number or an IANA service name.
func (f *Faults) PortOrName(p *field.Path, v intstr.IntOrString) {
	if v.Type == intstr.Int {
		f.Each(p, v.IntValue(), validation.IsValidPortNum(v.IntValue()))
		return
	}
	f.Each(p, v.StrVal, validation.IsValidPortName(v.StrVal))
}

// Labels checks a map of labels used as a selector or a template.
func (f *Faults) Labels(p *field.Path, l map[string]string) {
	f.Add(metavalidation.ValidateLabels(l, p))
}

// LabelName checks a label key.
func (f *Faults) LabelName(p *field.Path, k string) { f.Add(metavalidation.ValidateLabelName(k, p)) }

// Subdomain, Label and QualifiedName are the usual rules for names.
func (f *Faults) Subdomain(p *field.Path, v string)     { f.Each(p, v, validation.IsDNS1123Subdomain(v)) }
func (f *Faults) Label(p *field.Path, v string)         { f.Each(p, v, validation.IsDNS1123Label(v)) }
func (f *Faults) QualifiedName(p *field.Path, v string) { f.Each(p, v, validation.IsQualifiedName(v)) }

// Segment demands a value that can stand between two slashes of a URL.
func (f *Faults) Segment(p *field.Path, v string) {
	if f.Need(p, v) {
		f.Each(p, v, pathvalidation.IsValidPathSegmentName(v))
	}
}

// IP accepts an address of either family; fields that are older than the rule need not spell it canonically.
// known are values that were stored under looser rules and stay acceptable.
func (f *Faults) IP(p *field.Path, v string, known ...string) {
	f.Add(validation.IsValidIPForLegacyField(p, v, true, known))
}

// CIDR accepts a range of either family, with the same allowances as IP.
func (f *Faults) CIDR(p *field.Path, v string, known ...string) {
	f.Add(validation.IsValidCIDRForLegacyField(p, v, true, known))
}

// ParseIP reads an address of either family as fields are read that are older than the rules of IP: zeros may
// lead its numbers, and an address of IPv4 may be written as one of IPv6.
func ParseIP(v string) (ip netip.Addr, ok bool) {
	ip, ok = netip.AddrFromSlice(netutils.ParseIPSloppy(v))
	return ip.Unmap(), ok
}

// EndpointIP refuses addresses that no endpoint can have.
func (f *Faults) EndpointIP(p *field.Path, v string) {
	ip, ok := ParseIP(v)
	switch {
	case !ok:
		f.Invalid(p, v, "must be a valid IP address")
	case ip.IsUnspecified():
		f.Invalid(p, v, "may not be unspecified ("+v+")")
	case ip.IsLoopback():
		f.Invalid(p, v, "may not be in the loopback range (127.0.0.0/8, ::1/128)")
	case ip.IsLinkLocalUnicast():
		f.Invalid(p, v, "may not be in the link-local range (169.254.0.0/16, fe80::/10)")
	case ip.IsLinkLocalMulticast():
		f.Invalid(p, v, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
	}
}

// Seen remembers values so that the second one is reported.
type Seen[K comparable] map[K]bool

// Again reports whether k was there before, and remembers it.
func (s Seen[K]) Again(k K) bool {
	was := s[k]
	s[k] = true
	return was
}
