package job

import (
	"math"
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// span is the indexes from first to last, both included.
type span struct{ first, last int }

// indexes is a set of completion indexes: spans in order, never touching.
//
//	0 ≤ s[i].first ≤ s[i].last, s[i].last + 1 < s[i+1].first
type indexes []span

// parseIndexes reads the form of status.completedIndexes: "0-2,5,7,8". Indexes
// from below on and what cannot be read are left out.
func parseIndexes(text string, below int) indexes {
	var list []int
	var all indexes
	for part := range strings.SplitSeq(text, ",") {
		a, b, isSpan := strings.Cut(part, "-")
		first, err := strconv.Atoi(a)
		if err != nil || first < 0 || first >= below {
			continue
		}
		last := first
		if isSpan {
			if last, err = strconv.Atoi(b); err != nil || last < first {
				continue
			}
		}
		all = all.union(indexes{{first, min(last, below-1)}})
	}
	return all.with(list...)
}

// String is the form that users read: two neighbours are "7,8", more are "0-2".
func (s indexes) String() string {
	var parts []string
	for _, p := range s {
		switch {
		case p.first == p.last:
			parts = append(parts, strconv.Itoa(p.first))
		case p.first+1 == p.last:
			parts = append(parts, strconv.Itoa(p.first), strconv.Itoa(p.last))
		default:
			parts = append(parts, strconv.Itoa(p.first)+"-"+strconv.Itoa(p.last))
		}
	}
	return strings.Join(parts, ",")
}

func (s indexes) count() int {
	n := 0
	for _, p := range s {
		n += p.last - p.first + 1
	}
	return n
}

func (s indexes) has(i int) bool {
	at, ok := slices.BinarySearchFunc(s, i, func(p span, i int) int {
		switch {
		case p.last < i:
			return -1
		case p.first > i:
			return 1
		}
		return 0
	})
	return ok && at < len(s)
}

// with returns the set with more indexes in it.
func (s indexes) with(more ...int) indexes {
	slices.Sort(more)
	var t indexes
	for _, i := range more {
		t = append(t, span{i, i})
	}
	return s.union(t)
}

// union merges two lists of spans in order.
func (s indexes) union(t indexes) indexes {
	all := slices.Concat(s, t)
	slices.SortFunc(all, func(a, b span) int { return a.first - b.first })
	var out indexes
	for _, p := range all {
		if n := len(out); n > 0 && p.first <= out[n-1].last+1 {
			out[n-1].last = max(out[n-1].last, p.last)
			continue
		}
		out = append(out, p)
	}
	return out
}

// common is the number of indexes in both.
func (s indexes) common(t indexes) int {
	n := 0
	for i, j := 0, 0; i < len(s) && j < len(t); {
		n += max(0, min(s[i].last, t[j].last)-max(s[i].first, t[j].first)+1)
		if s[i].last < t[j].last {
			i++
		} else {
			j++
		}
	}
	return n
}

// missing returns the first count indexes below limit that are not in the set.
func (s indexes) missing(count, limit int) []int {
	var out []int
	next := 0
	for _, p := range append(slices.Clone(s), span{limit, limit}) {
		for ; next < p.first && next < limit && len(out) < count; next++ {
			out = append(out, next)
		}
		next = max(next, p.last+1)
	}
	return out
}

// indexOf is the completion index of a pod, -1 if it has none.
func indexOf(p *corev1.Pod) int {
	i, err := strconv.Atoi(p.Annotations[batchv1.JobCompletionIndexAnnotation])
	if err != nil || i < 0 {
		return -1
	}
	return i
}

func indexesOf(pods []*corev1.Pod) []int {
	var list []int
	for _, p := range pods {
		if i := indexOf(p); i >= 0 {
			list = append(list, i)
		}
	}
	return list
}

// failures are how often an index has failed before this pod: counted failures,
// and those that the failure policy ignores.
func failures(p *corev1.Pod) (counted, ignored int32) {
	return count(p, batchv1.JobIndexFailureCountAnnotation), count(p, batchv1.JobIndexIgnoredFailureCountAnnotation)
}

func count(p *corev1.Pod, annotation string) int32 {
	n, err := strconv.Atoi(p.Annotations[annotation])
	if err != nil || n < 0 || n > math.MaxInt32 {
		return 0
	}
	return int32(n)
}
