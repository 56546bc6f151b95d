package plugins

import (
	"strings"

	"github.com/keelson/keelson/scheduler/framework"
)

// Sizes between which an image on the node raises its score.
const (
	imageSmallBytes = 23 << 20
	imageLargeBytes = 1000 << 20 // for each container
)

// imageLocality prefers nodes that already have the pod's images, by size.
//
// Unlike upstream's, the score does not shrink for images that only a few nodes have: it would change
// with every other node, and scores are kept until their own node changes.
func imageLocality(_ *framework.Args, p *framework.Pod) framework.Local {
	var images []string
	for _, c := range p.Spec.InitContainers {
		images = append(images, imageName(c.Image))
	}
	for _, c := range p.Spec.Containers {
		images = append(images, imageName(c.Image))
	}
	containers := int64(len(images))
	for _, v := range p.Spec.Volumes {
		if v.Image != nil {
			images = append(images, imageName(v.Image.Reference))
		}
	}
	if containers == 0 {
		return framework.Local{}
	}
	return framework.Local{Score: func(n *framework.Node) int64 {
		if len(n.Images) == 0 {
			return 0
		}
		var sum int64
		for _, image := range images {
			sum += n.Images[image]
		}
		most := imageLargeBytes * containers
		return framework.MaxScore * (min(max(sum, imageSmallBytes), most) - imageSmallBytes) / (most - imageSmallBytes)
	}}
}

// imageName adds the tag that is meant when none is given.
func imageName(name string) string {
	if strings.LastIndex(name, ":") <= strings.LastIndex(name, "/") {
		return name + ":latest"
	}
	return name
}
